"""From a batch of groups to microbatches: solve rates, length reward, advantages, packed rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from zaya_jax.config.rl import RL
from zaya_jax.rl import advantages as rules
from zaya_jax.rl import packing
from zaya_jax.rl.length_reward import LengthReward, length_reward, pooled, track_best
from zaya_jax.rl.packing import Rows
from zaya_jax.rl.rollout import Group, check


class Prepared(NamedTuple):
    """A batch, ready to be learnt from.

    Attributes:
      microbatches: rows, all of one shape.
      rollouts: N, over which the loss is averaged.
      best: p* of each source, this batch included; see `length_reward.track_best`.
      solve_rate: mean over the groups.
      lengths: tokens of all responses that count.
    """

    microbatches: list[Rows]
    rollouts: int
    best: dict[str, float]
    solve_rate: float
    lengths: np.ndarray


def prepare(
    groups: Sequence[Group],
    best: Mapping[str, float],
    section: RL,
    *,
    layers: int,
    classes: int,
    pad_id: int,
    multiple: int = 1,
) -> Prepared:
    """Everything that happens to a batch between the buffer and the trainer.

    Args:
      groups: P groups of G rollouts; a reward that is NaN takes its rollout out.
      best: p* so far.
      section: the config.
      layers, classes: of the model, for router replay.
      pad_id: of positions that belong to no rollout.
      multiple: rows of a microbatch are one of this.

    Raises:
      UserError: as `rollout.check`, `advantages` and `packing.balance`.
    """
    rewards = np.stack([group.rewards for group in groups])
    valid = ~np.isnan(rewards)
    lengths = np.array([[len(r.completion) for r in group.rollouts] for group in groups])
    solved = (rewards == 1).sum(1) / np.maximum(valid.sum(1), 1)
    best = track_best(best, [group.source for group in groups], solved)
    if section.loss.advantage == "maxrl":
        shaping = None
        if section.length.coefficient:
            sources = pooled([group.source for group in groups])
            p_best = np.array([best[source] for source in sources])
            shaping = length_reward(rewards, lengths, p_best, _length(section), valid)
        found = rules.maxrl(
            rewards,
            shaping,
            valid,
            truncation=section.loss.truncation,  # type: ignore[arg-type]  # checked with the config
            centre=section.loss.centre,  # type: ignore[arg-type]
        )
    else:
        found = rules.grpo(rewards, valid)

    replayed = layers if section.loss.replay else None
    rollouts, advantage = [], []
    for i, group in enumerate(groups):
        for j, rollout in enumerate(group.rollouts):
            if valid[i, j]:
                check(rollout, budget=section.max_tokens, layers=replayed, experts=classes)
                rollouts.append(rollout)
                advantage.append(float(found[i, j]))
    rows = packing.balance(
        [rollout.inputs for rollout in rollouts],
        section.microbatch_tokens,
        multiple=section.microbatch_rows * multiple,
    )
    packed = packing.pack(
        rollouts, advantage, rows, section.microbatch_tokens, pad_id=pad_id, layers=replayed
    )
    size = section.microbatch_rows * multiple
    parts = [
        jax.tree.map(lambda x, i=i: x[i : i + size], packed) for i in range(0, len(rows), size)
    ]
    return Prepared(parts, len(rollouts), best, float(solved.mean()), lengths[valid])


def _length(section: RL) -> LengthReward:
    length = section.length
    return LengthReward(
        length.coefficient, section.max_tokens, length.tolerance, length.accuracy_tolerance
    )
