"""Attention over a cache in chunks of positions, as many as the longest live row needs.

A cache is allocated for the longest answer and mostly empty: a loop of the compiled program visits
only the chunks that some row attends and keeps a running softmax, so that a step costs as much as
the positions in use, not as the capacity. Chunks are read in place.

Source: the online softmax of Milakov and Gimelshein (2018).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.decode_attention.reference import attended

CHUNK = 256  # positions


def decode_attention(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    lengths: jax.Array,
    *,
    window: int | None = None,
    scale: float | None = None,
    start: jax.Array | None = None,
) -> jax.Array:
    """Chunked attention; see `pallas_kernels.decode_attention.decode_attention`."""
    B, H, C = q.shape
    K, T = k_cache.shape[1:3]
    chunk = min(CHUNK, T)
    compute = jnp.promote_types(q.dtype, jnp.float32)
    lowest = jnp.finfo(compute).min
    scale = C**-0.5 if scale is None else scale
    first, end = attended(lengths, start, window)
    grouped = q.reshape(B, K, H // K, C)

    def visit(j, state):
        out, row_max, row_sum = state
        # The last chunk of a capacity that is no multiple of `chunk` begins early, inside of the
        # one before; positions below j * chunk have been counted there.
        begin = jnp.minimum(j * chunk, T - chunk)
        position = begin + jnp.arange(chunk)
        visible = (position >= first[:, None]) & (position < end[:, None]) & (position >= j * chunk)
        visible = visible[:, None, None]
        k = lax.dynamic_slice_in_dim(k_cache, begin, chunk, axis=2)
        v = lax.dynamic_slice_in_dim(v_cache, begin, chunk, axis=2)
        scores = jnp.einsum("bkgc,bktc->bkgt", grouped, k, preferred_element_type=compute)
        scores = jnp.where(visible, scores * scale, lowest)
        new_max = jnp.maximum(row_max, scores.max(-1, keepdims=True))
        # Unlike in training, a row may see nothing at all: its sum has to stay 0.
        p = jnp.where(visible, jnp.exp(scores - new_max), 0)
        shrink = jnp.exp(row_max - new_max)
        gathered = jnp.einsum(
            "bkgt,bktc->bkgc", p.astype(v.dtype), v, preferred_element_type=compute
        )
        return out * shrink + gathered, new_max, row_sum * shrink + p.sum(-1, keepdims=True)

    # An idle row must not widen the range of the others.
    live = first < end
    chunks = (
        jnp.where(live, first, T).min() // chunk,
        (jnp.where(live, end, 0).max() + chunk - 1) // chunk,
    )
    out = jnp.zeros_like(grouped, compute)
    column = out[..., :1]
    out, _, row_sum = lax.fori_loop(*chunks, visit, (out, column + lowest, column))
    out = jnp.where(row_sum > 0, out / jnp.where(row_sum > 0, row_sum, 1), 0)
    return out.reshape(B, H, C).astype(q.dtype)
