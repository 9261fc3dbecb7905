"""The experts by sorting: portable, dropless, and only the work that was routed.

Assignments (token, choice) are sorted by expert, so each expert owns a run of rows, and runs are
cut into tiles (`layout.py`). A loop visits as many tiles as the data needs; each is computed at the
smallest of a few sizes that holds it, so that uneven loads, and experts with a handful of tokens,
cost little padding. Few assignments (decoding) have tiles of one size, whatever the data.

All movement between token order and expert order is a gather, forward and backward: a permutation
has an inverse, so nothing needs a scatter-add. The backward pass is our own: autodiff would keep
each turn's intermediates and scatter each turn's weight gradient into a fresh [E, D, 2F].

Made for CPUs, where a tile's size is chosen by a branch of the program at no cost. A GPU that has
to fall back to this form waits for the host at every turn.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import dots
from pallas_kernels.grouped_matmul.layout import Layout, lay_out
from pallas_kernels.grouped_matmul.streaming import matmul, matmul_transposed

FEW = 64  # assignments up to which tiles have one size: results do not depend on how many share one
SIZES = (32, 64, 96, 128, 192, 256)  # rows of a tile, where there are more


class Tiles(NamedTuple):
    """The rows of the experts and their tiles; N = T * k assignments, M = rows of the largest tile.

    layout: order and tiles, see `layout.py`.
    count: [] tiles that have an expert; they come first.
    token: [N + M] sorted row -> token; behind N any.
    position: [T, k] assignment -> sorted row, or N + M where no expert was asked for.
    """

    layout: Layout
    count: jax.Array
    token: jax.Array
    position: jax.Array


def experts(
    x: jax.Array, index: jax.Array, weight: jax.Array, gate_up: jax.Array, down: jax.Array
) -> jax.Array:
    """See `pallas_kernels.grouped_matmul.experts`."""
    if index.size == 0 or gate_up.shape[0] == 0:
        return jnp.zeros_like(x)
    return _experts(x, index, weight, gate_up, down)


def tile_sizes(assignments: int) -> tuple[int, ...]:
    """Rows that a tile of one of N assignments may have, ascending."""
    if assignments <= FEW:  # decode: about a tile for each chosen expert
        return (min(4 if assignments <= 16 else 8, max(1, assignments)),)
    return SIZES[: 1 + bisect.bisect_left(SIZES, assignments)]


def cut(index: jax.Array, num_experts: int) -> Tiles:
    """Sorts the assignments `index` [T, k] by expert and cuts them into tiles."""
    largest = tile_sizes(index.size)[-1]
    layout = lay_out(index, num_experts, largest)
    count = jnp.sum(layout.tiles[:, 0] < num_experts, dtype=jnp.int32)
    token = jnp.pad(lax.div(layout.order, jnp.int32(index.shape[1])), (0, largest))
    position = jnp.argsort(layout.order).astype(jnp.int32).reshape(index.shape)
    asked = (index >= 0) & (index < num_experts)
    return Tiles(layout, count, token, jnp.where(asked, position, index.size + largest))


def swiglu(z: jax.Array) -> jax.Array:
    gate, up = jnp.split(z, 2, axis=-1)
    return jax.nn.silu(gate) * up


@jax.custom_vjp
def _experts(x, index, weight, gate_up, down):
    return _forward(x, index, weight, gate_up, down)[0]


def _forward(x, index, weight, gate_up, down):
    tiles = cut(index, gate_up.shape[0])
    rows = len(tiles.token)

    def tile(size, expert, first, stop):
        token, _ = _tokens(tiles, size, first, stop)
        z = matmul(x[token], gate_up, expert)
        return (z, matmul(swiglu(z), down, expert)), ()

    def turn(i, carry):
        return _put(carry, _at_size(tiles, i, tile)[0], tiles.layout.tiles[i, 1])

    # Of z nothing remains but for the backward pass: where there is none, XLA drops it.
    empty = (jnp.zeros((rows, gate_up.shape[2]), x.dtype), jnp.zeros((rows, x.shape[1]), x.dtype))
    z, y = lax.fori_loop(0, tiles.count, turn, empty)
    y = (_take(y, tiles.position) * weight[..., None]).sum(1).astype(x.dtype)
    return y, (x, weight, gate_up, down, tiles, z)


def _backward(saved, dy):
    x, weight, gate_up, down, tiles, z = saved
    accumulator = jnp.promote_types(x.dtype, jnp.float32)
    probability = weight.reshape(-1)[tiles.layout.order]  # of a sorted row
    probability = jnp.pad(probability, (0, len(tiles.token) - len(probability)))

    def tile(size, expert, first, stop):
        # Rows behind the run's end are 0 in all operands: they add nothing to its gradients.
        token, valid = _tokens(tiles, size, first, stop)
        token = jnp.where(valid, token, len(x))
        x_rows, dy_rows = _take(x, token), _take(dy, token)
        p = lax.dynamic_slice_in_dim(probability, first, size)[:, None]
        h, pull = jax.vjp(swiglu, lax.dynamic_slice_in_dim(z, first, size))
        dh = matmul_transposed(dy_rows, down, expert)
        dp = (h * dh).sum(-1, dtype=accumulator)
        (dz,) = pull((dh * p).astype(z.dtype))
        dz, h = jnp.where(valid[:, None], dz, 0), jnp.where(valid[:, None], h * p, 0)
        d_gate_up = dots.matmul(x_rows.T, dz, accumulator)
        d_down = dots.matmul(h.astype(z.dtype).T, dy_rows, accumulator)
        return (matmul_transposed(dz, gate_up, expert), dp), (d_gate_up, d_down)

    def turn(i, carry):
        rows, sums = carry
        expert, first, _ = tiles.layout.tiles[i]
        new, more = _at_size(tiles, i, tile)
        return _put(rows, new, first), tuple(map(_add_at, sums, (expert, expert), more))

    dx = jnp.zeros((len(tiles.token), x.shape[1]), x.dtype)
    dp = jnp.zeros(len(tiles.token), accumulator)
    sums = tuple(jnp.zeros(w.shape, accumulator) for w in (gate_up, down))
    (dx, dp), (d_gate_up, d_down) = lax.fori_loop(0, tiles.count, turn, ((dx, dp), sums))
    return (
        _take(dx, tiles.position).sum(1),
        None,
        _take(dp, tiles.position).astype(weight.dtype),
        d_gate_up.astype(gate_up.dtype),
        d_down.astype(down.dtype),
    )


_experts.defvjp(_forward, _backward)


def _at_size(tiles: Tiles, i: jax.Array, tile: Callable):
    """`(rows, sums)` of `tile(size, expert, first, stop)` at the smallest size that holds tile i;
    the rows are padded to the largest size, for a program's branches give the same shapes."""
    sizes = tile_sizes(tiles.position.size)
    expert, first, stop = tiles.layout.tiles[i]
    if len(sizes) == 1:
        return tile(sizes[0], expert, first, stop)

    def branch(size: int):
        def run(*place):
            rows, sums = tile(size, *place)
            pad = lambda x: [(0, sizes[-1] - size)] + [(0, 0)] * (x.ndim - 1)  # noqa: E731
            return tuple(jnp.pad(x, pad(x)) for x in rows), sums

        return run

    choice = jnp.sum(stop - first > jnp.asarray(sizes[:-1]))
    return lax.switch(choice, [branch(size) for size in sizes], expert, first, stop)


def _tokens(tiles: Tiles, size: int, first, stop) -> tuple[jax.Array, jax.Array]:
    """The tokens of sorted rows `first`, `first + 1`, ..., and which of them are before `stop`."""
    token = lax.dynamic_slice_in_dim(tiles.token, first, size)
    return token, first + jnp.arange(size, dtype=jnp.int32) < stop


def _take(rows: jax.Array, at: jax.Array) -> jax.Array:
    """`rows[at]` along the first axis, zero where `at` is past the end."""
    return rows.at[at].get(mode="fill", fill_value=0)


def _put(arrays, new, first):
    """Overwrites rows from `first` on, in place inside a loop. What a tile has behind the end of
    its run is overwritten by the next tile, or read by nobody."""
    return tuple(
        lax.dynamic_update_slice_in_dim(a, n.astype(a.dtype), first, 0)
        for a, n in zip(arrays, new, strict=True)
    )


def _add_at(gradient: jax.Array, expert: jax.Array, more: jax.Array) -> jax.Array:
    """`gradient[expert] += more`, in place inside a loop."""
    old = lax.dynamic_index_in_dim(gradient, expert, keepdims=False)
    return lax.dynamic_update_index_in_dim(gradient, old + more, expert, 0)
