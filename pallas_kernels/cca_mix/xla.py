"""The same mix with less work: only the outputs' taps are computed, and the head-wise stage is one
batched matmul over all its taps."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.cca_mix.reference import mean_norm_rotate


def cca_mix(q, k, v_current, v_delayed, weights, cos, sin, positions, state=None, *, norm_dtype):
    """See the package."""
    B, S, _ = q.shape
    (K0, N), (K1, heads, C, _) = weights.depthwise.shape, weights.grouped.shape
    dtype, wide = q.dtype, jnp.promote_types(q.dtype, jnp.float32)
    past = K0 + K1 - 2
    if state is None:
        qk_before = jnp.zeros((B, past, N), dtype)
        v_before = jnp.zeros_like(v_delayed[:, 0])
    else:
        qk_before, v_before = state.qk.astype(dtype), state.v_delayed.astype(dtype)

    # Stage one at the K1 - 1 tokens before the row and at the row: [B, K1 - 1 + S, N].
    row = jnp.concatenate([qk_before, jnp.concatenate([q, k], axis=-1)], axis=1)
    place = jnp.concatenate([positions[:, :1] - jnp.arange(K1 - 1, 0, -1), positions], axis=1)
    depthwise, bias, grouped, grouped_bias = (w.astype(dtype) for w in weights[:4])
    stage1 = bias.astype(wide)
    for d in range(K0):
        tap = row[:, K0 - 1 - d : K0 - 1 - d + K1 - 1 + S]
        tap = jnp.where((place >= d)[..., None], tap, 0)
        stage1 = stage1 + depthwise[K0 - 1 - d].astype(wide) * tap
    stage1 = stage1.astype(dtype)

    taps = []
    for d in reversed(range(K1)):
        tap = stage1[:, K1 - 1 - d : K1 - 1 - d + S]
        if d:
            tap = jnp.where((positions >= d)[..., None], tap, bias)
        taps.append(tap.reshape(B, S, heads, C))
    grouped = grouped.transpose(1, 0, 2, 3).reshape(heads, K1 * C, C)
    mixed = jnp.concatenate(taps, axis=-1)
    if jax.default_backend() == "cpu":  # its batched dots cannot give a wider result
        mixed, grouped = mixed.astype(wide), grouped.astype(wide)
    convolved = jnp.einsum("bshc,hcd->bshd", mixed, grouped, preferred_element_type=wide)
    convolved = (convolved + grouped_bias.astype(wide).reshape(heads, C)).astype(dtype)

    q, k = q.reshape(B, S, -1, C), k.reshape(B, S, -1, C)
    H = q.shape[2]
    new_q, new_k = mean_norm_rotate(
        q, k, convolved[:, :, :H], convolved[:, :, H:], weights.temperature, cos, sin, norm_dtype
    )
    delayed = jnp.concatenate([v_before[:, None], v_delayed[:, :-1]], axis=1)
    delayed = jnp.where((positions >= 1)[..., None], delayed, 0)
    v = jnp.concatenate([v_current, delayed], axis=-1).reshape(k.shape)
    return new_q.astype(dtype), new_k.astype(dtype), v
