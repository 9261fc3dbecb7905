"""Rollouts as rows of a token budget, with even loads: what a trainer's microbatches are made of.

A response may be a hundred times as long as its neighbour. A microbatch is a row of at most so many
tokens, whatever number of rollouts that is; rows are filled evenly, so that devices that work side
by side finish side by side.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zaya_jax.errors import UserError
from zaya_jax.rl.rollout import Rollout


class Rows(NamedTuple):
    """B packed rows of S positions: the fields of `zaya_jax.data.packing.Batch`, and RL's own.

    Attributes:
      tokens: [B, S] int32, input ids.
      targets: [B, S] int32, the next token where it is learnt; else 0.
      segment_ids: [B, S] int32, 1, 2, ... for the rollouts in a row, 0 = padding.
      positions: [B, S] int32, from 0 in every rollout.
      loss_weights: [B, S] float32, 1 where the target is a token of a response, else 0.
      rollout_logprobs: [B, S] float32, of the targets, as they were sampled; else 0.
      advantages: [B, S] float32, the rollout's, at the targets; else 0.
      versions: [B, S] int32, the policy that sampled the target; else 0.
      routes: [B, S, L] uint8, the expert of each input token in each layer; None without replay.
    """

    tokens: np.ndarray
    targets: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    loss_weights: np.ndarray
    rollout_logprobs: np.ndarray
    advantages: np.ndarray
    versions: np.ndarray
    routes: np.ndarray | None


def balance(lengths: Sequence[int], budget: int, *, multiple: int = 1) -> list[list[int]]:
    """Distributes items over as few rows as this rule finds, with loads as even as it finds.

    The longest first, each to the row with the least load (LPT: the largest load is within a third
    of the best possible); where that overflows, again with more rows.

    Args:
      lengths: tokens of each item.
      budget: tokens that a row has room for.
      multiple: the number of rows is one of this: devices that take a row each.

    Returns:
      The items of each row, in ascending order. Empty rows make up the multiple.

    Raises:
      UserError: an item longer than the budget; a budget or multiple below 1.
    """
    if budget < 1 or multiple < 1:
        raise UserError(f"budget = {budget}, multiple = {multiple}: expected at least 1 of each")
    if lengths and max(lengths) > budget:
        i = int(np.argmax(lengths))
        raise UserError(
            f"rollout {i} has {lengths[i]} tokens; a microbatch holds {budget}: raise its budget, "
            "or lower that of prompts and responses"
        )
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    rows = max(1, -(-sum(lengths) // budget))
    while True:
        rows = -(-rows // multiple) * multiple
        if (found := _longest_first(lengths, order, budget, rows)) is not None:
            return found
        rows += 1


def _longest_first(
    lengths: Sequence[int], order: Sequence[int], budget: int, rows: int
) -> list[list[int]] | None:
    loads = [(0, row) for row in range(rows)]
    members: list[list[int]] = [[] for _ in range(rows)]
    for i in order:
        load, row = heapq.heappop(loads)
        if load + lengths[i] > budget:
            return None  # it does not fit the emptiest
        members[row].append(i)
        heapq.heappush(loads, (load + lengths[i], row))
    return [sorted(row) for row in members]


def pack(
    rollouts: Sequence[Rollout],
    advantages: Sequence[float],
    rows: Sequence[Sequence[int]],
    length: int,
    *,
    pad_id: int = 0,
    layers: int | None = None,
) -> Rows:
    """Lays rollouts side by side, as `balance` says (their lengths being `Rollout.inputs`).

    Args:
      rollouts: that were checked (`rollout.check`).
      advantages: one of each.
      rows: B lists of their numbers.
      length: S.
      pad_id: of positions that belong to none.
      layers: L, to pack routes as well; None leaves them out.

    Raises:
      ValueError: a row that is too long; routes that are missing or not of L layers.
    """
    shape = (len(rows), length)
    packed = Rows(
        tokens=np.full(shape, pad_id, np.int32),
        targets=np.zeros(shape, np.int32),
        segment_ids=np.zeros(shape, np.int32),
        positions=np.zeros(shape, np.int32),
        loss_weights=np.zeros(shape, np.float32),
        rollout_logprobs=np.zeros(shape, np.float32),
        advantages=np.zeros(shape, np.float32),
        versions=np.zeros(shape, np.int32),
        routes=None if layers is None else np.zeros((*shape, layers), np.uint8),
    )
    for row, members in enumerate(rows):
        begin = 0
        for segment, i in enumerate(members, start=1):
            rollout = rollouts[i]
            end = begin + rollout.inputs
            if end > length:
                raise ValueError(f"row {row} needs {end} positions; it has {length}")
            whole, learnt = slice(begin, end), slice(begin + len(rollout.prompt) - 1, end)
            packed.tokens[row, whole] = np.concatenate([rollout.prompt, rollout.completion[:-1]])
            packed.targets[row, learnt] = rollout.completion
            packed.segment_ids[row, whole] = segment
            packed.positions[row, whole] = np.arange(rollout.inputs)
            packed.loss_weights[row, learnt] = 1
            packed.rollout_logprobs[row, learnt] = rollout.logprobs
            packed.advantages[row, learnt] = advantages[i]
            packed.versions[row, learnt] = rollout.versions
            if packed.routes is not None:
                if rollout.routes is None or rollout.routes.shape != (rollout.inputs, layers):
                    raise ValueError(f"rollout {i} has no routes of {layers} layers")
                packed.routes[row, whole] = rollout.routes
            begin = end
    return packed
