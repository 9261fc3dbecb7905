"""Attention over a cache at the cost of the positions in use, not of the capacity.

A cache is allocated for the longest answer and mostly empty: a loop of the compiled program visits
only the chunks that some row attends and keeps a running softmax. XLA:CPU copies a chunk before it
multiplies, so a chunked position costs about twice a position of the definition's one pass over
the whole cache, which reads in place; each step takes whichever of the two is cheaper.

A cache in pages is always visited in chunks: one pass would need all pages of a row side by side.
The chunks visited beyond those of a row add zeros to its sums, so that its bits do not depend on
its neighbours.

Source: the online softmax of Milakov and Gimelshein (2018).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import dispatch
from pallas_kernels.decode_attention import reference
from pallas_kernels.dots import einsum

CHUNK = 128  # positions
SMALL = 2**17  # elements of a cache that one pass reads before a loop has started
CHUNK_COST = 2  # of a position read in a chunk, relative to one read by the single pass


def decode_attention(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    lengths: jax.Array,
    *,
    window: int | None = None,
    scale: float | None = None,
    start: jax.Array | None = None,
    pages: jax.Array | None = None,
    scales: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Chunked or whole, as is cheaper; see `pallas_kernels.decode_attention.decode_attention`."""
    if pages is not None:
        return _paged(q, k_cache, v_cache, lengths, window, scale, start, pages, scales)
    if scales is not None:
        # Portable, not fast: the cache is made plain first, as a whole.
        compute = jnp.promote_types(q.dtype, jnp.float32)
        k_cache = reference.plain(k_cache, None, scales[0], compute)
        v_cache = reference.plain(v_cache, None, scales[1], compute)
    T = k_cache.shape[2]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    first, end = reference.attended(lengths, start, window)

    def whole():
        everything = k_cache, v_cache, jnp.arange(T)
        return _visit(q, k_cache.shape[1], lambda _: everything, first, end, (0, 1), scale)

    if T <= CHUNK_COST * CHUNK or k_cache.size <= SMALL:
        return whole()
    chunks = _chunks(first, end, T)
    return lax.cond(
        (chunks[1] - chunks[0]) * CHUNK * CHUNK_COST < T,
        lambda: _chunked(q, k_cache, v_cache, first, end, chunks, scale),
        whole,
    )


def _chunks(first, end, T: int, size: int = CHUNK) -> tuple[jax.Array, jax.Array]:
    """The range of the chunks that some row attends; an idle row does not widen it."""
    live = first < end
    return (
        jnp.where(live, first, T).min() // size,
        (jnp.where(live, end, 0).max() + size - 1) // size,
    )


def _chunked(q, k_cache, v_cache, first, end, chunks, scale):
    """Attends positions [first, end) of each row, [B] each, which lie in the range `chunks`."""
    T = k_cache.shape[2]

    def load(j):
        # The last chunk of a capacity that is no multiple of CHUNK begins early, inside of the
        # one before; positions below j * CHUNK have been counted there.
        begin = jnp.minimum(j * CHUNK, T - CHUNK)
        k = lax.dynamic_slice_in_dim(k_cache, begin, CHUNK, axis=2)
        v = lax.dynamic_slice_in_dim(v_cache, begin, CHUNK, axis=2)
        position = begin + jnp.arange(CHUNK)
        return k, v, jnp.where(position >= j * CHUNK, position, -1)

    return _visit(q, k_cache.shape[1], load, first, end, chunks, scale)


def _paged(q, k_cache, v_cache, lengths, window, scale, start, pages, scales):
    """Attends a cache [P, K, room, C] in pages; a chunk is a page, or several small ones."""
    room, compute = k_cache.shape[2], jnp.promote_types(q.dtype, jnp.float32)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    first, end = reference.attended(lengths, start, window)
    several = min(max(CHUNK // room, 1), pages.shape[1])
    # Pages that are not attended may be named by anything; those behind the last are.
    pages = jnp.pad(pages, ((0, 0), (0, -pages.shape[1] % several)))

    def load(j):
        at = lax.dynamic_slice_in_dim(pages, j * several, several, axis=1)
        k, v = (reference.plain(cache, at, None, compute) for cache in (k_cache, v_cache))
        if scales is not None:
            # Gathered first: scaled first, the whole pool would be made plain.
            wide = [
                reference.plain(x[..., None], at, None, compute).astype(compute) for x in scales
            ]
            k, v = k.astype(compute) * wide[0], v.astype(compute) * wide[1]
        return k, v, j * several * room + jnp.arange(several * room)

    chunks = _chunks(first, end, pages.shape[1] * room, several * room)
    return _visit(q, k_cache.shape[1], load, first, end, chunks, scale)


def _visit(q, K, load, first, end, chunks, scale):
    """The running softmax over the range `chunks`; load(j) gives keys and values [B, K, n, C] of
    chunk j and their positions [n], negative where they do not count."""
    B, H, C = q.shape
    compute = jnp.promote_types(q.dtype, jnp.float32)
    lowest = jnp.finfo(compute).min
    grouped = q.reshape(B, K, H // K, C)

    def visit(j, state):
        out, row_max, row_sum = state
        k, v, position = load(j)
        visible = (position >= first[:, None]) & (position < end[:, None])
        visible = visible[:, None, None]
        scores = jnp.where(visible, _scores(grouped, k, compute) * scale, lowest)
        new_max = jnp.maximum(row_max, scores.max(-1, keepdims=True))
        # Unlike in training, a row may see nothing at all: its sum has to stay 0.
        p = jnp.where(visible, jnp.exp(scores - new_max), 0)
        shrink = jnp.exp(row_max - new_max)
        gathered = einsum("bkgt,bktc->bkgc", p.astype(v.dtype), v, compute)
        return out * shrink + gathered, new_max, row_sum * shrink + p.sum(-1, keepdims=True)

    out = jnp.zeros_like(grouped, compute)
    column = out[..., :1]
    out, _, row_sum = lax.fori_loop(chunks[0], chunks[1], visit, (out, column + lowest, column))
    out = out / jnp.where(row_sum > 0, row_sum, 1)
    return out.reshape(B, H, C).astype(q.dtype)


def _scores(grouped: jax.Array, keys: jax.Array, compute: jnp.dtype) -> jax.Array:
    """[B, K, G, C] and [B, K, n, C] to [B, K, G, n].

    XLA:CPU takes twice as long where both operands are contracted over their last axis. So the
    small one is transposed, and then the result (the barriers keep XLA from undoing that).
    """
    if dispatch.platform() != "cpu":
        return einsum("bkgc,bktc->bkgt", grouped, keys, compute)
    queries = lax.optimization_barrier(grouped.swapaxes(2, 3))
    scores = einsum("bktc,bkcg->bktg", keys, queries, compute)
    return lax.optimization_barrier(scores).swapaxes(2, 3)
