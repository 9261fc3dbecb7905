"""The definition, tap by tap."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def _before(x: jax.Array, d: int) -> jax.Array:
    """x[:, t - d], zeros where t < d."""
    return jnp.pad(x, ((0, 0), (d, 0), (0, 0)))[:, : x.shape[1]]


def l2_norm(x: jax.Array, dtype) -> jax.Array:
    """x * sqrt(C) / max(||x||, eps) over the last axis.

    The clamp is inside the root: a padded row of zeros has a gradient of zero, not NaN.
    """
    eps = jnp.finfo(dtype).eps
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    norm = jnp.sqrt(jnp.maximum(square, jnp.asarray(float(eps) ** 2, square.dtype)))
    return x * (jnp.asarray(x.shape[-1] ** 0.5, dtype) / norm)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate-half RoPE on the first 2 * cos.shape[-1] channels; x [B, S, heads, C]."""
    half = cos.shape[-1]
    cos, sin = cos[:, :, None].astype(x.dtype), sin[:, :, None].astype(x.dtype)
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def mean_norm_rotate(q, k, conv_q, conv_k, temperature, cos, sin, dtype):
    """q-k mean added to the convolved latents, L2 norm, key temperature, RoPE; [B, S, heads, C]."""
    group = q.shape[2] // k.shape[2]
    q, k, conv_q, conv_k = (x.astype(dtype) for x in (q, k, conv_q, conv_k))
    mean_q = (q + jnp.repeat(k, group, axis=2)) * 0.5
    mean_k = jnp.mean(mean_q.reshape(*k.shape[:3], group, k.shape[3]), axis=3)
    q = l2_norm(conv_q + mean_q, dtype)
    k = l2_norm(conv_k + mean_k, dtype) * temperature.astype(dtype)[:, None]
    return rotate(q, cos, sin), rotate(k, cos, sin)


def cca_mix(q, k, v_current, v_delayed, weights, cos, sin, positions, state=None, *, norm_dtype):
    """See the package."""
    B, S, _ = q.shape
    (K0, N), (K1, heads, C, _) = weights.depthwise.shape, weights.grouped.shape
    dtype, wide = q.dtype, jnp.promote_types(q.dtype, jnp.float32)
    past = K0 + K1 - 2
    qk = jnp.concatenate([q, k], axis=-1)
    if state is None:
        qk_before = jnp.zeros((B, past, N), dtype)
        v_before = jnp.zeros_like(v_delayed[:, 0])
    else:
        qk_before, v_before = state.qk.astype(dtype), state.v_delayed.astype(dtype)

    # The row with the past in front of it; positions before a document's start are negative.
    row = jnp.concatenate([qk_before, qk], axis=1)
    place = jnp.concatenate([positions[:, :1] - jnp.arange(past, 0, -1), positions], axis=1)

    # Each stage accumulates in float32 at least and is rounded once.
    depthwise, bias, grouped, grouped_bias = (w.astype(dtype) for w in weights[:4])
    stage1 = bias.astype(wide)
    for d in range(K0):
        tap = jnp.where((place >= d)[..., None], _before(row, d), 0)
        stage1 = stage1 + depthwise[K0 - 1 - d].astype(wide) * tap
    stage1 = stage1.astype(dtype)

    stage2 = grouped_bias.astype(wide).reshape(heads, C)
    for d in range(K1):
        tap = jnp.where((place >= d)[..., None], _before(stage1, d), bias)
        tap = tap.reshape(B, -1, heads, C).astype(wide)
        stage2 = stage2 + jnp.einsum("bshc,hcd->bshd", tap, grouped[K1 - 1 - d].astype(wide))
    convolved = stage2.astype(dtype)[:, past:]
    q, k = q.reshape(B, S, -1, C), k.reshape(B, S, -1, C)
    H = q.shape[2]
    new_q, new_k = mean_norm_rotate(
        q, k, convolved[:, :, :H], convolved[:, :, H:], weights.temperature, cos, sin, norm_dtype
    )
    delayed = jnp.concatenate([v_before[:, None], v_delayed[:, :-1]], axis=1)
    delayed = jnp.where((positions >= 1)[..., None], delayed, 0)
    v = jnp.concatenate([v_current, delayed], axis=-1).reshape(k.shape)
    return new_q.astype(dtype), new_k.astype(dtype), v
