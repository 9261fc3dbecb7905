"""A reward for short right answers, the more the easier the prompt (report eq. 8 to 10).

Order of things: canaries zero a task reward first, then the solve rate, the shortest right rollout
and this reward are computed, then advantages (`advantages.maxrl(..., shaping=...)`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from zaya_jax.errors import UserError
from zaya_jax.rl import groups


@dataclasses.dataclass(frozen=True)
class LengthReward:
    """How much shortness is worth. The report gives none of the numbers: they are ours, and the
    tolerances those of Short-RL.

    Attributes:
      coefficient: c; ramped from small to 1 over the stages of the report. 0 is off.
      longest: l_max in tokens, a constant; the budget of a response.
      length_tolerance: T_l in tokens: so much longer than the shortest right rollout is as good.
      accuracy_tolerance: T_acc: how far a prompt's solve rate may be below the best of its source.

    Raises:
      UserError: a value outside its range.
    """

    coefficient: float = 1.0
    longest: int = 81_920
    length_tolerance: int = 100
    accuracy_tolerance: float = 0.05

    def __post_init__(self):
        accepted = {
            "coefficient": (0 <= self.coefficient <= 1, "0 to 1"),
            "longest": (self.longest >= 1, "at least 1"),
            "length_tolerance": (self.length_tolerance >= 0, "at least 0"),
            "accuracy_tolerance": (0 <= self.accuracy_tolerance <= 1, "0 to 1"),
        }
        for name, (holds, expected) in accepted.items():
            if not holds:
                raise UserError(f"{name} = {getattr(self, name)}: expected {expected}")


def length_reward(
    rewards: np.ndarray,
    lengths: np.ndarray,
    best: np.ndarray,
    settings: LengthReward,
    valid: np.ndarray | None = None,
) -> np.ndarray:
    """dr, what is added to the task reward in the numerator of the advantage.

    With l_min the shortest right rollout of the group and p its solve rate:

        lam_i = 1/2 - clamp((l_i - l_min) / (l_max - l_min), 0, 1),    1/2 if l_i <= l_min + T_l
        m_i   = [p > p* - T_acc] [p > 1/G] [r_i = 1]
        dr_i  = c p m_i lam_i                                          in [-c p / 2, c p / 2]

    Args:
      rewards: [P, G], the task's: 1 is right, all else is not.
      lengths: [P, G], tokens of the responses.
      best: [P], p*: the best solve rate of each prompt's source so far, see `track_best`.
      settings: c, l_max, T_l, T_acc.
      valid: [P, G] bool, see `groups.check`; G counts the valid ones.

    Returns:
      [P, G] float64, 0 for rollouts that are not right.
    """
    rewards, valid = groups.check(rewards, valid)
    lengths = np.asarray(lengths, np.float64)
    right = valid & (rewards == 1)
    size = valid.sum(axis=1, keepdims=True)
    rate = right.sum(axis=1, keepdims=True) / np.maximum(size, 1)
    shortest = np.where(right, lengths, np.inf).min(axis=1, keepdims=True)
    shortest = np.where(np.isfinite(shortest), shortest, 0.0)  # no right one: nothing is rewarded

    excess, room = lengths - shortest, settings.longest - shortest
    share = np.where(room > 0, excess / np.where(room > 0, room, 1.0), excess > 0)
    lam = 0.5 - np.clip(share, 0, 1)
    lam = np.where(excess <= settings.length_tolerance, 0.5, lam)
    good = rate > np.asarray(best, np.float64)[:, None] - settings.accuracy_tolerance
    several = right.sum(axis=1, keepdims=True) > 1  # p > 1/G, without the rounding
    return np.where(right & good & several, settings.coefficient * rate * lam, 0.0)


FEW, OTHERS = 4, "(sources of few prompts)"


def track_best(
    best: Mapping[str, float], sources: Sequence[str], solve_rates: np.ndarray
) -> dict[str, float]:
    """p*: for each data source, the largest mean solve rate that a batch of it had.

    A source's rate in a batch is the mean over its prompts, as Short-RL has it: the maximum over
    single prompts is soon 1, and would leave only groups that are all right. So sources of fewer
    than `FEW` prompts in a batch count as one (ours): the 400 environments of rlve-gym do.

    Args:
      best: of the batches before; {} at the start. Not changed.
      sources: of the batch's P prompts.
      solve_rates: [P].

    Returns:
      The new state, this batch included.
    """
    batch: dict[str, list[float]] = {}
    for source, rate in zip(pooled(sources), np.asarray(solve_rates, float).tolist(), strict=True):
        batch.setdefault(source, []).append(rate)
    means = {source: sum(rates) / len(rates) for source, rates in batch.items()}
    return dict(best) | {s: max(mean, best.get(s, 0.0)) for s, mean in means.items()}


def pooled(sources: Sequence[str]) -> list[str]:
    """The sources of a batch's prompts; those of fewer than `FEW` prompts as the one `OTHERS`."""
    counts = Counter(sources)
    return [source if counts[source] >= FEW else OTHERS for source in sources]
