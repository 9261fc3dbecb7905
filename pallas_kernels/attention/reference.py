"""The definition of causal grouped-query attention: the whole [S, T] matrix, in plain jnp."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.dots import einsum


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    query_offset: jax.Array | int = 0,
    window: int | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """softmax(scale * q k^T + mask) v; see `pallas_kernels.attention.attention`."""
    B, S, H, C = q.shape
    T, K = k.shape[1:3]
    compute = jnp.promote_types(q.dtype, jnp.float32)
    scale = C**-0.5 if scale is None else scale

    grouped = q.reshape(B, S, K, H // K, C)
    scores = einsum("bikgc,bjkc->bkgij", grouped, k, compute) * scale
    visible = visibility(S, T, query_offset, segment_ids, window)
    scores = jnp.where(visible[:, None, None], scores, jnp.finfo(compute).min)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = einsum("bkgij,bjkc->bikgc", probabilities, v, compute)
    out = out.reshape(B, S, H, C).astype(q.dtype)
    if not return_lse:
        return out
    return out, jax.nn.logsumexp(scores, axis=-1).transpose(0, 3, 1, 2).reshape(B, S, H)


def visibility(
    S: int,
    T: int,
    query_offset: jax.Array | int,
    segment_ids: jax.Array | None,
    window: int | None,
) -> jax.Array:
    """bool [B or 1, S, T]: whether query i (axis 1) attends key j (axis 2)."""
    i, j = query_offset + jnp.arange(S)[:, None], jnp.arange(T)[None, :]
    visible = (j <= i)[None]
    if window is not None:
        visible &= i - j < window
    if segment_ids is not None:
        own = lax.dynamic_slice_in_dim(segment_ids, query_offset, S, axis=1)
        visible &= own[:, :, None] == segment_ids[:, None, :]
    return visible
