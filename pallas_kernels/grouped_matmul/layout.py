"""Which rows a program of the kernels has: assignments sorted by expert, cut into tiles.

An assignment is a token and one of its k choices; there are N = T * k, numbered t * k + choice.
Sorted by expert, each expert owns a run of *sorted rows*, and what asks for no expert (the skip
class, padding) is one more run at the end. A run is cut into tiles of `rows` rows. A tile never
straddles two runs, so it has one expert's weights to read, and the last tile of a run may be partly
empty. How many tiles there are depends on data, and so is known only as an upper bound: launches
have a program for each that there could be, and those that have none end at once.

What is computed between two kernels lies in *padded rows*, tile after tile: loads and stores there
are neither gathered nor masked.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# Up to here a row's place is counted by comparing all pairs: two fused launches instead of a sort.
COMPARED = 256


class Layout(NamedTuple):
    """Tables for the kernels, int32; E stands for the run of what is skipped.

    Attributes:
      order: [N] sorted row -> assignment.
      tiles: [tiles, 3] the run of a tile (E + 1 where there is none), its first sorted row, and one
        past the last sorted row of its run.
      runs: [E, 3] an expert's first sorted row, one past its last, and its first padded row.
    """

    order: jax.Array
    tiles: jax.Array
    runs: jax.Array


def most_tiles(assignments: int, num_experts: int, rows: int) -> int:
    """Tiles that N assignments can need: every run that is not empty may waste rows - 1 of them."""
    runs = min(num_experts + 1, assignments)
    return (assignments + runs * (rows - 1)) // rows


def lay_out(index: jax.Array, num_experts: int, rows: int) -> Layout:
    """Sorts the assignments `index` [T, k] by expert and cuts them into tiles of `rows` rows."""
    flat = index.reshape(-1).astype(jnp.int32)
    size = flat.shape[0]
    run = jnp.where((flat >= 0) & (flat < num_experts), flat, num_experts)
    counts = _total(run[:, None] == jnp.arange(num_experts + 1, dtype=jnp.int32))
    stop = jnp.cumsum(counts, dtype=jnp.int32)
    start = stop - counts
    tiles_of_run = lax.div(counts + (rows - 1), jnp.int32(rows))
    end = jnp.cumsum(tiles_of_run, dtype=jnp.int32)
    begin = end - tiles_of_run

    tile = jnp.arange(most_tiles(size, num_experts, rows), dtype=jnp.int32)
    owner = _total(tile >= end[:, None])
    own = jnp.minimum(owner, num_experts)
    first = start[own] + (tile - begin[own]) * rows
    tiles = jnp.stack([owner, first, stop[own]], axis=1)
    runs = jnp.stack([start, stop, begin * rows], axis=1)[:num_experts]
    return Layout(_order(run), tiles, runs)


def _total(flags: jax.Array) -> jax.Array:
    """How many of the first axis are true."""
    return jnp.sum(flags, axis=0, dtype=jnp.int32)


def _order(run: jax.Array) -> jax.Array:
    """The stable order that sorts `run` [N]."""
    place = jnp.arange(run.shape[0], dtype=jnp.int32)
    if run.shape[0] > COMPARED:
        return lax.sort((run, place), num_keys=1)[1]
    before = (run[:, None] < run) | ((run[:, None] == run) & (place[:, None] < place))
    sorted_row = _total(before)  # of every assignment
    return jnp.sum(jnp.where(sorted_row[:, None] == place, place[:, None], 0), 0, jnp.int32)
