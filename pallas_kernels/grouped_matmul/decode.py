"""The experts on few tokens, to decode: two launches, and of the weights only what was chosen.

A program owns an expert and a block of columns. It finds its rows by itself among the N choices,
for tables that XLA made would be more launches than the work: an assignment's rank among those of
its expert is a running sum, and row r of a tile is the assignment of rank r. The program of an
expert that nobody chose ends there and reads no weights; that of one with more rows than a tile
passes over its weights again for every tile, out of the cache.

Hidden activations lie in the order of assignments. Those of skipped ones are never written, and
never read. No backward pass: see `triton`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels import tuned
from pallas_kernels.grouped_matmul.tiles import UNIT, block_of, scaled, swiglu
from pallas_kernels.grouped_matmul.weights import Matrices
from pallas_kernels.quantized import Quantized

MOST = 256  # assignments: a program compares its tile's rows with all of them in registers


class _Tile(NamedTuple):
    """Rows of one expert, at most `UNIT`; where there are fewer, the last one is repeated."""

    expert: jax.Array
    assignment: jax.Array  # [UNIT]
    token: jax.Array  # [UNIT]
    first: jax.Array  # column of the program


def experts(
    settings: Callable[[str], Mapping[str, int]],
    interpreted: bool,
    x: jax.Array,
    index: jax.Array,
    weight: jax.Array,
    gate_up: jax.Array | Quantized,
    down: jax.Array | Quantized,
) -> jax.Array:
    """See `pallas_kernels.grouped_matmul.experts`; `settings` of a kernel by its name."""
    (tokens, choices), (_, width, hidden) = weight.shape, down.shape
    into, out_of = Matrices(gate_up), Matrices(down)

    def over_experts(kernel: str, body, matrices: Matrices, arrays, columns: int, skip=None):
        own = settings(kernel)
        block, depth = block_of(columns, own["columns"]), matrices.depth(own["depth"])
        plain = matrices.arrays[0].dtype == x.dtype
        sides = [UNIT, *[block] * (1 + (kernel == "decode_gate_up"))] if plain else []
        return pl.pallas_call(
            _program(body, skip, index.size, choices, gate_up.shape[0], block, depth),
            grid=(columns // block, gate_up.shape[0] + (skip is not None)),
            out_shape=jax.ShapeDtypeStruct((index.size, columns), x.dtype),
            compiler_params=tuned.compiler_params(
                own, [side * depth * x.dtype.itemsize for side in sides], early=True
            ),
            interpret=interpreted,
            name=f"experts_{kernel}",
        )(index.reshape(-1), *arrays)

    def decode_gate_up(tile: _Tile, block: int, depth: int, x_ref, *refs):
        weights, [h_ref] = into.split(refs)
        columns = pl.ds(tile.first, block), pl.ds(width + tile.first, block)
        zeros = jnp.zeros((UNIT, block), jnp.float32)
        left = lambda at: x_ref[tile.token, at]  # noqa: E731
        gate, up = into.products(weights, tile.expert, depth, columns, left, (zeros, zeros))
        h = swiglu(gate.astype(x.dtype), up.astype(x.dtype))
        h_ref[tile.assignment, pl.ds(tile.first, block)] = h

    def decode_down(tile: _Tile, block: int, depth: int, h_ref, *refs):
        weights, (weight_ref, y_ref) = out_of.split(refs)
        own = pl.ds(tile.first, block)
        zeros = jnp.zeros((UNIT, block), jnp.float32)
        left = lambda at: h_ref[tile.assignment, at]  # noqa: E731
        [total] = out_of.products(weights, tile.expert, depth, [own], left, [zeros])
        y = scaled(total.astype(x.dtype), weight_ref[tile.assignment])
        y_ref[tile.assignment, own] = y

    def skip(tile: _Tile, block: int, depth: int, *refs):
        refs[-1][tile.assignment, pl.ds(tile.first, block)] = jnp.zeros((UNIT, block), x.dtype)

    h = over_experts("decode_gate_up", decode_gate_up, into, (x, *into.arrays), width)
    arrays = h, *out_of.arrays, weight.reshape(-1)
    y = over_experts("decode_down", decode_down, out_of, arrays, hidden, skip)
    return y if choices == 1 else y.reshape(tokens, choices, hidden).sum(1)


def _program(
    body: Callable[..., None],
    skip: Callable[..., None] | None,
    size: int,
    choices: int,
    num_experts: int,
    block: int,
    depth: int,
) -> Callable[..., None]:
    """The kernel that runs `body(tile, block, depth, *refs)` for every tile of its expert, and
    `skip` for those of no expert."""
    padded = pl.next_power_of_2(size)

    def program(index_ref, *refs: Any):
        first, run = pl.program_id(0) * block, pl.program_id(1)
        place = jnp.arange(padded, dtype=jnp.int32)
        chosen = index_ref[jnp.minimum(place, size - 1)].astype(jnp.int32)
        chosen = jnp.where((chosen >= 0) & (chosen < num_experts), chosen, num_experts)
        mine = (chosen == run) & (place < size)
        rank = lax.cumsum(mine.astype(jnp.int32)) - 1
        count = jnp.sum(mine, dtype=jnp.int32)

        def over_tiles(visit):
            def step(i, carry):
                wanted = i * UNIT + jnp.arange(UNIT, dtype=jnp.int32)
                hit = mine[None, :] & (rank[None, :] == jnp.minimum(wanted, count - 1)[:, None])
                assignment = jnp.sum(jnp.where(hit, place[None, :], 0), axis=1, dtype=jnp.int32)
                token = assignment if choices == 1 else lax.div(assignment, choices)
                visit(_Tile(run, assignment, token, first), block, depth, *refs)
                return carry

            lax.fori_loop(0, lax.div(count + (UNIT - 1), UNIT), step, 0)

        if skip is None:
            over_tiles(body)
        else:
            pl.when(run < num_experts)(lambda: over_tiles(body))
            pl.when(run == num_experts)(lambda: over_tiles(skip))

    return program
