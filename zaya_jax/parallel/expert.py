"""Expert parallelism: tokens travel to the devices of their experts, and the results come back.

The assignments (token, choice) of a device are sorted by expert, so what it has for each device is
a run of rows. Exchanges have fixed shapes, loads have not: a turn moves at most `capacity` rows for
each pair of devices, and there are as many turns as the largest load of a pair needs. With loads
near even that is one; with all tokens at one device it is one for each device's worth, and nothing
is dropped. What memory it takes does not depend on the loads.

A turn's exchange is either of two, which put the same rows in the same places:

* `padded`: `all_to_all` of `capacity` rows for each pair, of which the last may be empty;
* `ragged`: `ragged_all_to_all`, which moves only rows that are there. XLA has it on GPUs only.

Every device knows the loads of all pairs (an all-gather of E integers), so no index travels: the
receiver finds out which expert a row is for from where it lies.

The derivative is our own: a loop of as many turns as the data needs has none in reverse. It repeats
the exchange instead of keeping what came, like everything under rematerialisation.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import dispatch

AXIS = "expert"
ROUNDED = 8  # capacities are multiples of it


@dataclasses.dataclass(frozen=True)
class Exchange:
    """How rows travel.

    Attributes:
      ranks: devices of the axis `expert`.
      kind: `padded` or `ragged`.
      room: rows of a turn for each pair, as a multiple of an even share of all rows.
    """

    ranks: int
    kind: str
    room: float

    @classmethod
    def of(cls, ranks: int, kind: str, room: float) -> Exchange:
        """The same, with `auto` decided by the platform that is compiled for."""
        if kind == "auto":
            kind = "ragged" if dispatch.platform() in ("cuda", "rocm") else "padded"
        return cls(ranks, kind, room)

    def capacity(self, rows: int) -> int:
        """Rows that a turn moves for each pair of devices, of the `rows` that a device has."""
        even = math.ceil(self.room * rows / self.ranks)
        return min(rows, ROUNDED * math.ceil(even / ROUNDED))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Route:
    """Where the N assignments of a device go; integers.

    Attributes:
      assignment: [N] sorted row -> assignment.
      position: [N] assignment -> sorted row.
      rank: [N] sorted row -> the device of its expert; `ranks` where it has none.
      first: [ranks] the first sorted row for each device.
      loads: [ranks, ranks, E / ranks] from a device, to a device, for each expert there.
      turns: [].
    """

    assignment: jax.Array
    position: jax.Array
    rank: jax.Array
    first: jax.Array
    loads: jax.Array
    turns: jax.Array


def route(index: jax.Array, experts: int, ranks: int, capacity: int) -> Route:
    """Sorts the assignments `index` [T, k] among `experts`; tells all devices their number."""
    flat = index.reshape(-1)
    key = jnp.where((flat >= 0) & (flat < experts), flat, experts).astype(jnp.int32)
    numbers = jnp.arange(flat.shape[0], dtype=jnp.int32)
    key, assignment = lax.sort((key, numbers), num_keys=1)
    _, position = lax.sort((assignment, numbers), num_keys=1)
    own = jnp.sum(key[:, None] == jnp.arange(experts, dtype=jnp.int32), axis=0, dtype=jnp.int32)
    local = experts // ranks
    first = (jnp.cumsum(own, dtype=jnp.int32) - own)[::local]
    loads = lax.all_gather(own.reshape(ranks, local), AXIS)
    most = jnp.max(jnp.sum(loads, axis=2, dtype=jnp.int32))
    return Route(assignment, position, key // local, first, loads, -(-most // capacity))


class Turn:
    """One exchange: which rows go where, and which come from where.

    Attributes:
      expert: [ranks * capacity] of the rows that come, which of this device's experts each is for;
        E / ranks where there is no row.
    """

    def __init__(self, exchange: Exchange, route: Route, number: jax.Array, capacity: int):
        self.kind, self.route, self.capacity = exchange.kind, route, capacity
        me = lax.axis_index(AXIS)
        self.done = number * capacity  # rows of each pair that earlier turns have moved
        pairs = jnp.sum(route.loads, axis=2, dtype=jnp.int32)
        self.sent = jnp.clip(pairs[me] - self.done, 0, capacity)  # [ranks]
        self.received = jnp.clip(pairs[:, me] - self.done, 0, capacity)
        # Where this device's rows stand among those of each device they come from.
        self.origin = (jnp.cumsum(pairs, axis=1, dtype=jnp.int32) - pairs)[:, me]
        self.here = me * capacity
        slot = jnp.arange(capacity, dtype=jnp.int32)
        ends = jnp.cumsum(route.loads[:, me], axis=1, dtype=jnp.int32)  # [ranks, E / ranks]
        behind = (self.done + slot)[None, :, None] >= ends[:, None]
        self.expert = jnp.sum(behind, axis=2, dtype=jnp.int32).reshape(-1)

    def out(self, rows: jax.Array, at: jax.Array) -> jax.Array:
        """What comes to this device: [ranks * capacity, ...], zeros where there is no row.

        Args:
          rows: what this device has, along the first axis.
          at: [N] sorted row -> row of `rows`.
        """
        first = self.route.first + self.done
        if self.kind == "ragged":
            blank = jnp.zeros((len(first) * self.capacity, *rows.shape[1:]), rows.dtype)
            there = jnp.full_like(first, self.here)
            return lax.ragged_all_to_all(
                rows[at], blank, self._within(first, at), self.sent, there, self.received,
                axis_name=AXIS,
            )  # fmt: skip
        slot = jnp.arange(self.capacity, dtype=jnp.int32)
        row = jnp.where(slot < self.sent[:, None], first[:, None] + slot, at.shape[0])
        source = at.at[row].get(mode="fill", fill_value=rows.shape[0])
        packed = rows.at[source.reshape(-1)].get(mode="fill", fill_value=0)
        return lax.all_to_all(packed, AXIS, split_axis=0, concat_axis=0, tiled=True)

    def back(self, rows: jax.Array, kept: jax.Array) -> jax.Array:
        """Rows on this device, as `out` laid them, to where they came from.

        Args:
          rows: [ranks * capacity, ...].
          kept: [N, ...] sorted rows of earlier turns; those of this turn are written into it.
        """
        if self.kind == "ragged":
            slots = jnp.arange(len(self.sent), dtype=jnp.int32) * self.capacity
            return lax.ragged_all_to_all(
                rows, kept, slots, self.received, self._within(self.origin + self.done, kept),
                self.sent, axis_name=AXIS,
            )  # fmt: skip
        found = lax.all_to_all(rows, AXIS, split_axis=0, concat_axis=0, tiled=True)
        rank, ranks = self.route.rank, len(self.sent)
        number = jnp.arange(rank.shape[0], dtype=jnp.int32)
        slot = number - self.route.first[jnp.minimum(rank, ranks - 1)] - self.done
        ours = (rank < ranks) & (slot >= 0) & (slot < self.capacity)
        at = jnp.where(ours, rank * self.capacity + slot, found.shape[0])
        here = found.at[at].get(mode="fill", fill_value=0)
        return jnp.where(ours.reshape(-1, *(1,) * (kept.ndim - 1)), here, kept)

    @staticmethod
    def _within(offsets: jax.Array, rows: jax.Array) -> jax.Array:
        """Offsets of runs that may be empty, none of them behind the end."""
        return jnp.minimum(offsets, rows.shape[0])


def experts(
    exchange: Exchange,
    op: Callable[..., jax.Array],
    x: jax.Array,
    index: jax.Array,
    weight: jax.Array,
    gate_up: jax.Array,
    down: jax.Array,
) -> jax.Array:
    """`Shard.experts`, where `gate_up` and `down` are this device's E / ranks of E experts."""
    ranks, (tokens, choices) = exchange.ranks, index.shape
    capacity = exchange.capacity(index.size)

    def turn_of(route: Route, number: jax.Array) -> Turn:
        return Turn(exchange, route, number, capacity)

    def to_tokens(rows: jax.Array, route: Route) -> jax.Array:
        """Sorted rows [N, ...] to the assignments of each token [T, k, ...]."""
        return rows[route.position].reshape(tokens, choices, *rows.shape[1:])

    def local(turn: Turn, x, weight, gate_up, down) -> jax.Array:
        return op(x, turn.expert[:, None], weight[:, None], gate_up, down)

    @jax.custom_vjp
    def run(x, weight, gate_up, down, route):
        return forward(x, weight, gate_up, down, route)[0]

    def forward(x, weight, gate_up, down, route):
        token, flat = route.assignment // choices, weight.reshape(-1)

        def body(number, y):
            turn = turn_of(route, number)
            here = local(turn, turn.out(x, token), turn.out(flat, route.assignment), gate_up, down)
            return turn.back(here, y)

        y = lax.fori_loop(0, route.turns, body, jnp.zeros((index.size, x.shape[1]), x.dtype))
        y = to_tokens(y, route).sum(1).astype(x.dtype)
        return y, (x, weight, gate_up, down, route)

    def backward(kept, dy):
        x, weight, gate_up, down, route = kept
        token, flat = route.assignment // choices, weight.reshape(-1)
        both = jnp.concatenate([x, dy.astype(x.dtype)], axis=1)  # one exchange for both

        def body(number, sums):
            dx, d_weight, *d_experts = sums
            turn = turn_of(route, number)
            came, their = turn.out(both, token), turn.out(flat, route.assignment)
            there_x, there_dy = jnp.split(came, 2, axis=1)
            pull = jax.vjp(functools.partial(local, turn), there_x, their, gate_up, down)[1]
            back_x, back_weight, *more = pull(there_dy)
            dx, d_weight = turn.back(back_x, dx), turn.back(back_weight, d_weight)
            return dx, d_weight, *(d + m for d, m in zip(d_experts, more, strict=True))

        zeros = (
            jnp.zeros((index.size, x.shape[1]), x.dtype),
            jnp.zeros(index.size, weight.dtype),
            jnp.zeros_like(gate_up),
            jnp.zeros_like(down),
        )
        dx, d_weight, d_gate_up, d_down = lax.fori_loop(0, route.turns, body, zeros)
        dx = to_tokens(dx, route).sum(1).astype(x.dtype)
        return dx, to_tokens(d_weight, route), d_gate_up, d_down, None

    run.defvjp(forward, backward)
    total = gate_up.shape[0] * ranks
    return run(x, weight, gate_up, down, route(index, total, ranks, capacity))
