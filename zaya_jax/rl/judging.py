"""From finished groups to those that are learnt from: canaries, rewards, dynamic sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zaya_jax.rl import compressibility, dynamic_sampling
from zaya_jax.rl.generation import Finished
from zaya_jax.rl.rewards.score import Scorer
from zaya_jax.rl.rollout import Group

LOST = ("failed", "cancelled")
"""Ends of rollouts that are nobody's fault, and count for nothing."""


class Judged(NamedTuple):
    """What became of finished groups.

    Attributes:
      groups: all of them, with their rewards.
      kept: those with a right and a wrong rollout.
      loops: rollouts that went round in circles, whose reward is 0.
      failures: of verifiers, by kind.
      messages: of failures, one of each kind.
    """

    groups: tuple[Group, ...]
    kept: tuple[Group, ...]
    loops: int
    failures: Counter[str]
    messages: dict[str, str]


def judge(finished: Sequence[Finished], scorer: Scorer) -> Judged:
    """Scores groups. A loop earns nothing, whatever its answer; what its verifier lost is NaN."""
    verifiers = [group.task.verifier for group in finished for _ in group.rollouts]
    submissions = [s for group in finished for s in group.submissions]
    scores = scorer.score(verifiers, submissions)
    rewards, loops, groups, begin = scores.rewards.copy(), 0, [], 0
    for group in finished:
        own = rewards[begin : begin + len(group.rollouts)]
        begin += len(group.rollouts)
        for i, rollout in enumerate(group.rollouts):
            if rollout.finish in LOST or not len(rollout.completion):
                own[i] = np.nan
            elif compressibility.loops(rollout.completion.tolist()):
                own[i], loops = 0.0, loops + 1
        groups.append(Group(group.task.name, group.task.source, group.rollouts, own))
    kept = [group for group in groups if bool(dynamic_sampling.informative(group.rewards[None])[0])]
    return Judged(tuple(groups), tuple(kept), loops, scores.failures, scores.messages)
