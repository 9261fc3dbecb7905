"""From finished groups to those that are learnt from: canaries, rewards, dynamic sampling."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from zaya_jax.rl import compressibility, dynamic_sampling
from zaya_jax.rl.generation import Finished
from zaya_jax.rl.rewards.interface import Submission
from zaya_jax.rl.rewards.score import Scorer
from zaya_jax.rl.rollout import Group

LOST = ("failed", "cancelled")
"""Ends of rollouts that are nobody's fault, and count for nothing."""


class Judged(NamedTuple):
    """What became of finished groups.

    Attributes:
      groups: all of them, with their rewards.
      kept: those that teach: with a right and a wrong rollout.
      passed: rollouts that their verifier gives full marks, whatever a reward model says.
      loops: rollouts that went round in circles, whose reward is 0.
      failures: of verifiers, by kind.
      messages: of failures, one of each kind.
    """

    groups: tuple[Group, ...]
    kept: tuple[Group, ...]
    passed: int
    loops: int
    failures: Counter[str]
    messages: dict[str, str]


Model = Callable[[Sequence[str], Sequence[Submission]], np.ndarray]
"""Scores of responses to prompts, from 0 to 1; see `preference.judge`."""


def judge(
    finished: Sequence[Finished],
    scorer: Scorer,
    reward_model: Model | None = None,
    *,
    graded: bool = False,
    all_teach: bool = False,
) -> Judged:
    """Scores groups. A loop earns nothing, whatever its answer; what its verifier lost is NaN.

    Args:
      reward_model: scores what passes its verifier; everything else then earns 0, and a group
        teaches if its rewards differ.
      graded: rewards between 0 and 1 count (GRPO): a group teaches if its rewards differ, not only
        if some are 1.
      all_teach: keeps every group, as without dynamic sampling.
    """
    verifiers = [group.task.verifier for group in finished for _ in group.rollouts]
    submissions = [s for group in finished for s in group.submissions]
    scores = scorer.score(verifiers, submissions)
    rewards, loops, groups, begin = scores.rewards.copy(), 0, [], 0
    full = int((rewards >= 1).sum())
    if reward_model is not None:
        prompts = [group.task.prompt for group in finished for _ in group.rollouts]
        passed = np.flatnonzero(rewards >= 1)
        scored = reward_model([prompts[i] for i in passed], [submissions[i] for i in passed])
        rewards = np.where(np.isnan(rewards), np.nan, 0.0)
        rewards[passed] = scored
    for group in finished:
        own = rewards[begin : begin + len(group.rollouts)]
        begin += len(group.rollouts)
        for i, rollout in enumerate(group.rollouts):
            if rollout.finish in LOST or not len(rollout.completion):
                own[i] = np.nan
            elif compressibility.loops(rollout.completion.tolist()):
                own[i], loops = 0.0, loops + 1
        groups.append(Group(group.task.name, group.task.source, group.rollouts, own))
    teaches = _varies if graded or reward_model is not None else _is_right_and_wrong
    kept = [
        group
        for group in groups
        if (all_teach and not np.isnan(group.rewards).all()) or teaches(group.rewards)
    ]
    return Judged(tuple(groups), tuple(kept), full, loops, scores.failures, scores.messages)


def _is_right_and_wrong(rewards: np.ndarray) -> bool:
    return bool(dynamic_sampling.informative(rewards[None])[0])


def _varies(rewards: np.ndarray) -> bool:
    known = rewards[~np.isnan(rewards)]
    return known.size > 1 and float(np.ptp(known)) > 0
