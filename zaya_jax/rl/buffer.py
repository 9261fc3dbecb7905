"""The buffer between generation and training: explicit state, and pure functions of it.

It holds a few batches of groups. Generation may run ahead: then the oldest group makes room, which
keeps data fresh where waiting would make it stale. Training takes the oldest that are fresh enough.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

import numpy as np

from zaya_jax.errors import UserError
from zaya_jax.rl.rollout import Group, Rollout, staleness


@dataclasses.dataclass(frozen=True)
class Buffer:
    """Groups that wait to be learnt from, the oldest first.

    Attributes:
      capacity: most groups; two batches in the report.
      bound: most updates between a token and the policy that learns from it; 2 in the report.
      groups: at most `capacity`.
      evicted: groups that made room so far.
      stale: groups that grew too old so far.

    Raises:
      UserError: no capacity, or a bound below 0.
    """

    capacity: int
    bound: int = 2
    groups: tuple[Group, ...] = ()
    evicted: int = 0
    stale: int = 0

    def __post_init__(self):
        if self.capacity < 1:
            raise UserError(f"the buffer's capacity is {self.capacity} groups; expected at least 1")
        if self.bound < 0:
            raise UserError(f"the bound on staleness is {self.bound}; expected at least 0")


def put(buffer: Buffer, groups: Sequence[Group]) -> Buffer:
    """With new groups at the end; the oldest beyond the capacity are gone."""
    together = (*buffer.groups, *groups)
    excess = max(0, len(together) - buffer.capacity)
    return dataclasses.replace(buffer, groups=together[excess:], evicted=buffer.evicted + excess)


def take(buffer: Buffer, want: int, version: int) -> tuple[tuple[Group, ...] | None, Buffer]:
    """The oldest groups that the policy may still learn from.

    Args:
      buffer: the state.
      want: groups of a batch.
      version: updates behind the policy that is to learn.

    Returns:
      The batch, or None while there are too few, and the buffer without it and without all that
      has grown too old.

    Raises:
      UserError: a batch larger than the buffer, which would never be full.
    """
    if want > buffer.capacity:
        raise UserError(f"a batch of {want} groups never fits a buffer of {buffer.capacity}")
    fresh = tuple(g for g in buffer.groups if staleness(g, version) <= buffer.bound)
    stale = buffer.stale + len(buffer.groups) - len(fresh)
    batch = fresh[:want] if len(fresh) >= want else None
    rest = fresh[want:] if batch is not None else fresh
    return batch, dataclasses.replace(buffer, groups=rest, stale=stale)


Arrays = dict[str, np.ndarray]


def to_arrays(buffer: Buffer) -> Arrays:
    """The whole state as arrays, for a checkpoint: equal bytes for equal buffers."""
    rollouts = [rollout for group in buffer.groups for rollout in group.rollouts]
    about = {
        "capacity": buffer.capacity,
        "bound": buffer.bound,
        "evicted": buffer.evicted,
        "stale": buffer.stale,
        "tasks": [group.task for group in buffer.groups],
        "sources": [group.source for group in buffer.groups],
        "sizes": [len(group.rollouts) for group in buffer.groups],
        "finish": [rollout.finish for rollout in rollouts],
        "prompts": [len(rollout.prompt) for rollout in rollouts],
        "completions": [len(rollout.completion) for rollout in rollouts],
        "routes": [None if r.routes is None else list(r.routes.shape) for r in rollouts],
    }
    routes = [r.routes.reshape(-1) for r in rollouts if r.routes is not None]
    return {
        "about": np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8),
        "rewards": _join([group.rewards for group in buffer.groups], np.float64),
        "prompt": _join([rollout.prompt for rollout in rollouts], np.int32),
        "completion": _join([rollout.completion for rollout in rollouts], np.int32),
        "logprobs": _join([rollout.logprobs for rollout in rollouts], np.float32),
        "versions": _join([rollout.versions for rollout in rollouts], np.int32),
        "routes": _join(routes, np.uint8),
    }


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Buffer:
    """The buffer that `to_arrays` wrote.

    Raises:
      UserError: the arrays are damaged.
    """
    try:
        about = json.loads(bytes(np.asarray(arrays["about"], np.uint8)))
        prompts, completions = about["prompts"], about["completions"]
        columns = {
            "prompt": _split(arrays["prompt"], prompts),
            "completion": _split(arrays["completion"], completions),
            "logprobs": _split(arrays["logprobs"], completions),
            "versions": _split(arrays["versions"], completions),
        }
        shapes = [shape or [0, 0] for shape in about["routes"]]
        routes = _split(arrays["routes"], [rows * layers for rows, layers in shapes])
        rollouts = [
            Rollout(
                **{name: column[i] for name, column in columns.items()},
                finish=finish,
                routes=None if about["routes"][i] is None else routes[i].reshape(shapes[i]),
            )
            for i, finish in enumerate(about["finish"])
        ]
        sizes = about["sizes"]
        rewards = _split(arrays["rewards"], sizes)
        begins = np.concatenate([[0], np.cumsum(sizes)]).astype(int).tolist()
        groups = tuple(
            Group(task, source, tuple(rollouts[begins[i] : begins[i + 1]]), rewards[i])
            for i, (task, source) in enumerate(zip(about["tasks"], about["sources"], strict=True))
        )
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(f"the rollout buffer of this checkpoint is damaged: {error!r}") from None
    counters = {name: about[name] for name in ("capacity", "bound", "evicted", "stale")}
    return Buffer(groups=groups, **counters)


def _join(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(part, dtype) for part in parts)])


def _split(joined: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
    if sum(lengths) != len(joined):
        raise ValueError(f"{len(joined)} values where {sum(lengths)} belong")
    return np.split(np.asarray(joined), np.cumsum(lengths)[:-1]) if lengths else []
