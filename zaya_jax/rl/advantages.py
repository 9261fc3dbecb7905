"""Advantages of rollouts among those of their prompt: MaxRL and GRPO.

Both are pure functions of arrays [P, G] (see `groups`). A rollout that was lost has advantage 0,
and so have all of a group of which fewer than two are left.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from zaya_jax.errors import UserError, hint
from zaya_jax.rl import groups

Truncation = Literal["G-1", "G"]
Centre = Literal["shaped", "task"]


def maxrl(
    rewards: np.ndarray,
    shaping: np.ndarray | None = None,
    valid: np.ndarray | None = None,
    *,
    truncation: Truncation = "G-1",
    centre: Centre = "shaped",
) -> np.ndarray:
    """MaxRL (report eq. 7): `A_i = (r_i - mean(r)) / mean(r)`.

    With k of G rollouts right, a right one gets (G-k)/k and a wrong one -1: hard prompts weigh
    most. In expectation over groups, `mean_i A_i grad log pi(y_i)` is the gradient of a truncated
    maximum likelihood, `J_T = -sum_{j=1..T} (1-p)^j / j` with p the probability to be right; T is
    decided by what a group without any right rollout gets.

    With a length reward dr the numerator becomes `(r_i + dr_i) - mean(r + dr)`, over the same
    denominator `mean(r)`.

    Args:
      rewards: [P, G], the task's, in [0, 1].
      shaping: [P, G], dr of `length_reward`.
      valid: [P, G] bool, see `groups.check`.
      truncation: `G-1`: such a group gets 0, as in the authors' code. `G`: it gets -1 each.
      centre: `shaped` subtracts mean(r + dr), so that a group's advantages sum to 0; `task`
        subtracts mean(r). The report's words allow both.

    Returns:
      [P, G] float64.

    Raises:
      UserError: groups of one, a reward outside [0, 1], an unknown option.
    """
    if truncation not in ("G-1", "G"):
        raise UserError(f"truncation = {truncation!r}: expected 'G-1' or 'G'")
    if centre not in ("shaped", "task"):
        raise UserError(f"centre = {centre!r}{hint(centre, ('shaped', 'task'))}")
    rewards, valid = groups.check(rewards, valid)
    if valid.any() and not (0 <= rewards[valid].min() and rewards[valid].max() <= 1):
        raise UserError(
            f"rewards from {rewards[valid].min():g} to {rewards[valid].max():g}: MaxRL divides by "
            "their mean, and takes them in [0, 1]"
        )
    task = groups.mean(rewards, valid)
    shaped = rewards if shaping is None else rewards + np.where(valid, shaping, 0.0)
    middle = groups.mean(shaped, valid) if centre == "shaped" else task
    some = task > 0
    advantages = np.where(some, (shaped - middle) / np.where(some, task, 1.0), 0.0)
    if truncation == "G":
        advantages = np.where(some, advantages, -1.0)
    return _of_groups(advantages, valid)


def grpo(
    rewards: np.ndarray,
    valid: np.ndarray | None = None,
    *,
    epsilon: float = 1e-6,
    scale: bool = True,
) -> np.ndarray:
    """GRPO (report section IV-E): `A_i = (r_i - mean(r)) / (std(r) + epsilon)`.

    Args:
      rewards: [P, G], any finite numbers, such as those of a reward model.
      valid: [P, G] bool, see `groups.check`.
      epsilon: 1e-6 in the report and in verl, 1e-4 in trl.
      scale: False leaves the deviation out, as Dr. GRPO does.

    Returns:
      [P, G] float64. The standard deviation is that of a sample (n - 1).

    Raises:
      UserError: groups of one.
    """
    rewards, valid = groups.check(rewards, valid)
    advantages = rewards - groups.mean(rewards, valid)
    if scale:
        squares = np.where(valid, advantages, 0.0) ** 2
        count = valid.sum(axis=1, keepdims=True)
        deviation = np.sqrt(squares.sum(axis=1, keepdims=True) / np.maximum(count - 1, 1))
        advantages = advantages / (deviation + epsilon)
    return _of_groups(advantages, valid)


def _of_groups(advantages: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """0 where there is no rollout, or none to compare it with."""
    compared = valid & (valid.sum(axis=1, keepdims=True) >= 2)
    return np.where(compared, advantages, 0.0)
