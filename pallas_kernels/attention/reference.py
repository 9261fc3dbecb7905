"""The definition of causal grouped-query attention: the whole [S, S] matrix, in plain jnp."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    window: int | None = None,
    scale: float | None = None,
) -> jax.Array:
    """softmax(scale * q k^T + mask) v; see `pallas_kernels.attention.attention`."""
    B, S, H, C = q.shape
    K = k.shape[2]
    compute = jnp.promote_types(q.dtype, jnp.float32)
    scale = C**-0.5 if scale is None else scale

    grouped = q.reshape(B, S, K, H // K, C)
    scores = jnp.einsum("bikgc,bjkc->bkgij", grouped, k, preferred_element_type=compute) * scale
    visible = visibility(S, segment_ids, window)
    scores = jnp.where(visible[:, None, None], scores, jnp.finfo(compute).min)
    probabilities = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgij,bjkc->bikgc", probabilities, v, preferred_element_type=compute)
    return out.reshape(B, S, H, C).astype(q.dtype)


def visibility(S: int, segment_ids: jax.Array | None, window: int | None) -> jax.Array:
    """bool [B or 1, S, S]: whether query i (axis 1) attends key j (axis 2)."""
    i, j = jnp.arange(S)[:, None], jnp.arange(S)[None, :]
    visible = (j <= i)[None]
    if window is not None:
        visible &= i - j < window
    if segment_ids is not None:
        visible &= segment_ids[:, :, None] == segment_ids[:, None, :]
    return visible
