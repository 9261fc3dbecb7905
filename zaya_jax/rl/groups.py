"""Rewards of groups: arrays [P, G], P prompts with G rollouts each, of which some may be lost."""

from __future__ import annotations

import numpy as np

from zaya_jax.errors import UserError


def check(rewards: np.ndarray, valid: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Rewards as float64 and the mask of those that count; a lost one is NaN or not valid.

    Args:
      rewards: [P, G].
      valid: [P, G] bool; None for all that are not NaN. A rollout whose verifier failed is not
        valid, and then its group is that much smaller.

    Returns:
      Both [P, G]; rewards are 0 where not valid.

    Raises:
      UserError: not [P, G], or G < 2: an advantage compares a rollout with others of its prompt.
      ValueError: a valid reward that is not finite.
    """
    rewards = np.asarray(rewards, np.float64)
    if rewards.ndim != 2:
        raise UserError(f"rewards have shape {rewards.shape}; expected [prompts, group size]")
    if rewards.shape[1] < 2:
        raise UserError(
            f"the group size is {rewards.shape[1]}; expected at least 2: a rollout is judged by "
            "the others of its prompt"
        )
    valid = ~np.isnan(rewards) if valid is None else np.asarray(valid, bool)
    if valid.shape != rewards.shape:
        raise ValueError(f"valid has shape {valid.shape}, rewards {rewards.shape}")
    if not np.isfinite(rewards[valid]).all():
        raise ValueError("a valid reward is not finite")
    return np.where(valid, rewards, 0.0), valid


def mean(values: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """[P, 1], over the valid ones; 0 for a group without any."""
    count = valid.sum(axis=1, keepdims=True)
    return np.where(valid, values, 0.0).sum(axis=1, keepdims=True) / np.maximum(count, 1)
