"""The definition of attention over a cache, in plain jnp: every position, then a mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.dots import einsum


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
    """softmax(scale * q k^T + mask) v; see `pallas_kernels.decode_attention.decode_attention`."""
    compute = jnp.promote_types(q.dtype, jnp.float32)
    k_cache, v_cache = (
        plain(x, pages, None if scales is None else scales[i], compute)
        for i, x in enumerate((k_cache, v_cache))
    )
    B, H, C = q.shape
    K, T = k_cache.shape[1:3]
    scale = C**-0.5 if scale is None else scale

    first, end = attended(lengths, start, window)
    position = jnp.arange(T)
    visible = (position >= first[:, None]) & (position < end[:, None])  # [B, T]

    grouped = q.reshape(B, K, H // K, C)
    scores = einsum("bkgc,bktc->bkgt", grouped, k_cache, compute)
    scores = jnp.where(visible[:, None, None], scores * scale, jnp.finfo(compute).min)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(v_cache.dtype)
    out = einsum("bkgt,bktc->bkgc", probabilities, v_cache, compute)
    out = jnp.where((first < end)[:, None, None, None], out, 0)
    return out.reshape(B, H, C).astype(q.dtype)


def plain(
    cache: jax.Array, pages: jax.Array | None, scale: jax.Array | None, compute: jnp.dtype
) -> jax.Array:
    """A cache as [B, K, T, C]: its values times their scales, its pages one behind the other."""
    if scale is not None:
        cache = cache.astype(compute) * scale[..., None].astype(compute)
    if pages is None:
        return cache
    # Pages that are not in use may be named by anything.
    parts = cache[jnp.clip(pages, 0, len(cache) - 1)].swapaxes(1, 2)  # [B, K, pages, room, C]
    return parts.reshape(*parts.shape[:2], -1, parts.shape[-1])


def attended(
    lengths: jax.Array, start: jax.Array | None, window: int | None
) -> tuple[jax.Array, jax.Array]:
    """`(first, end)`, int [B] each: row b attends the positions first[b] <= p < end[b]."""
    first = jnp.zeros_like(lengths) if start is None else start
    if window is not None:
        first = jnp.maximum(first, lengths - window)
    return first, lengths
