"""Context parallelism: a row lies on several devices, in chunks (report III).

Rank r of n has the chunks r and 2n - 1 - r of 2n ("zigzag"). Under a causal mask a chunk's work is
proportional to its number, and 2n - 1 is the sum on every rank: all have as much to do.

What crosses the borders of chunks, a layer:

* keys and values, in their compressed width of K heads, gathered by all ranks; a query attends the
  keys of the whole row. Their gradients are summed back to where they were made.
* the last K0 + K1 - 2 latents before the convolutions, and the last delayed value, sent to the rank
  that has the next chunk ("halo"). Differentiation sends the gradient back the same way.

Positions in the documents travel with the tokens, so a document's start resets the mix wherever in
a chunk it lies, and depth-averaged router states, which belong to tokens, need nothing at all.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.cca_mix import State

AXIS = "context"


def order(length: int, ranks: int) -> np.ndarray:
    """[S]: which token of a row stands at each place, so that rank r has the r-th part of it."""
    if ranks == 1:
        return np.arange(length)
    chunks = np.arange(length).reshape(2 * ranks, -1)
    return np.concatenate([chunks[[r, 2 * ranks - 1 - r]].reshape(-1) for r in range(ranks)])


def whole_rows(x: jax.Array, ranks: int) -> jax.Array:
    """This rank's two chunks, [B, S, ...], to the whole rows in order, [B, ranks * S, ...]."""
    B, S = x.shape[:2]
    found = lax.all_gather(x.reshape(B, 2, S // 2, *x.shape[2:]), AXIS, axis=1)
    early, late = found[:, :, 0], found[:, ::-1, 1]
    return jnp.concatenate([early, late], axis=1).reshape(B, ranks * S, *x.shape[2:])


def from_chunk_before(early: jax.Array, late: jax.Array, ranks: int) -> tuple[jax.Array, jax.Array]:
    """What the chunks before this rank's two have sent.

    Args:
      early, late: what this rank's chunks r and 2n - 1 - r have for the chunk after them.

    Returns:
      The same of chunks r - 1 (zeros for the first chunk) and 2n - 2 - r.
    """
    up = [(i, i + 1) for i in range(ranks - 1)]
    down = [(i + 1, i) for i in range(ranks - 1)]
    before_early, before_late = lax.ppermute(early, AXIS, up), lax.ppermute(late, AXIS, down)
    # In the middle of the row, chunk n follows chunk n - 1 on the same rank.
    last = lax.axis_index(AXIS) == ranks - 1
    return before_early, jnp.where(last, early, before_late)


def mix(
    op: Callable[..., tuple[jax.Array, jax.Array, jax.Array]],
    past: int,
    latents: tuple[jax.Array, ...],
    tables: tuple[jax.Array, ...],
    ranks: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`Shard.mix`: the two chunks are two rows, each with the state that its predecessor sent."""
    B, S = latents[0].shape[:2]

    def as_rows(x: jax.Array) -> jax.Array:
        return x.reshape(2 * B, S // 2, *x.shape[2:])

    q, k, v_current, v_delayed = map(as_rows, latents)
    # [2B, past * (q and k channels) + v_delayed channels]: one message each way.
    ends = [q[:, S // 2 - past :], k[:, S // 2 - past :]]
    widths = [q.shape[2] + k.shape[2], v_delayed.shape[2]]
    message = jnp.concatenate(
        [jnp.concatenate(ends, axis=2).reshape(2 * B, past * widths[0]), v_delayed[:, -1]], axis=1
    ).reshape(B, 2, -1)
    found = from_chunk_before(message[:, 0], message[:, 1], ranks)
    before = jnp.stack(found, axis=1).reshape(2 * B, -1)
    qk, value = before[:, : past * widths[0]], before[:, past * widths[0] :]
    state = State(qk.reshape(2 * B, past, widths[0]), value)
    mixed = op(q, k, v_current, v_delayed, *map(as_rows, tables), state)
    q, k, v = (x.reshape(B, S, *x.shape[2:]) for x in mixed)
    return q, k, v


def attend(
    op: Callable[..., jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None,
    ranks: int,
) -> jax.Array:
    """`Shard.attend`: the queries of either chunk, to the keys of the whole row."""
    chunk, C = q.shape[1] // 2, k.shape[3]
    keys = whole_rows(jnp.concatenate([k, v], axis=3), ranks)  # one collective for both
    k, v = keys[..., :C], keys[..., C:]
    rank = lax.axis_index(AXIS)
    parts = [
        op(queries, k, v, segment_ids, query_offset=number * chunk)
        for queries, number in ((q[:, :chunk], rank), (q[:, chunk:], 2 * ranks - 1 - rank))
    ]
    return jnp.concatenate(parts, axis=1)
