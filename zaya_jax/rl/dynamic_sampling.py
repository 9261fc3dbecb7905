"""Groups that teach: neither all right nor all wrong (DAPO's dynamic sampling).

All others have no contrast to learn from. They are dropped, and prompts are sampled until a batch
is full. This conditions on 0 < k < G, so MaxRL's gradient is then that of each prompt divided by
the probability to be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from zaya_jax.rl import groups

Group = TypeVar("Group")


def informative(rewards: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Which groups have a right and a not right rollout: `0 < k < n` of n valid ones.

    Args:
      rewards: [P, G], of the task alone: with a length reward a group that is all right has
        advantages, but is dropped all the same (DAPO filters on accuracy).
      valid: [P, G] bool, see `groups.check`.

    Returns:
      [P] bool.
    """
    rewards, valid = groups.check(rewards, valid)
    right = (valid & (rewards == 1)).sum(axis=1)
    return (0 < right) & (right < valid.sum(axis=1))


class Filling(NamedTuple, Generic[Group]):
    """A batch that fills up.

    Attributes:
      batch: what is complete now: `want` groups, or None.
      held: groups that wait for the next call, in order.
      dropped: groups of this call that teach nothing.
    """

    batch: tuple[Group, ...] | None
    held: tuple[Group, ...]
    dropped: int


def fill(
    held: Sequence[Group], arrived: Sequence[Group], kept: np.ndarray, want: int
) -> Filling[Group]:
    """Adds the groups that are kept, and takes a batch off the front once there are enough.

    Args:
      held: of the calls before.
      arrived: new groups.
      kept: [len(arrived)] bool, as `informative` says.
      want: groups of a batch.
    """
    chosen = [group for group, keep in zip(arrived, kept, strict=True) if keep]
    together = (*held, *chosen)
    dropped = len(arrived) - len(chosen)
    if len(together) < want:
        return Filling(None, together, dropped)
    return Filling(together[:want], together[want:], dropped)
