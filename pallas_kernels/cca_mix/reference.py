"""The definition, tap by tap."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.dots import einsum


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


def mean_norm_rotate(q, k, convolved, weights, cos, sin, dtype, qk_mean):
    """q-k mean added to the convolved latents, L2 norm, key temperature, RoPE.

    q [B, S, H, C] and k [B, S, K, C] are the latents, convolved [B, S, H + K, C] all of them."""
    H, group = q.shape[2], q.shape[2] // k.shape[2]
    new_q, new_k = convolved[:, :, :H].astype(dtype), convolved[:, :, H:].astype(dtype)
    if qk_mean:
        q, k = q.astype(dtype), k.astype(dtype)
        mean_q = (q + jnp.repeat(k, group, axis=2)) * 0.5
        mean_k = jnp.mean(mean_q.reshape(*k.shape[:3], group, k.shape[3]), axis=3)
        new_q, new_k = new_q + mean_q, new_k + mean_k
    new_q = l2_norm(new_q, dtype)
    new_k = l2_norm(new_k, dtype) * weights.temperature.astype(dtype)[:, None]
    return rotate(new_q, cos, sin), rotate(new_k, cos, sin)


def values(v_current, v_delayed, positions, state, value_shift):
    """[B, S, K * C]: a token's own current half, then the delayed half of the token before it."""
    if value_shift:
        before = jnp.zeros_like(v_delayed[:, 0]) if state is None else state.v_delayed
        before = before.astype(v_delayed.dtype)[:, None]
        v_delayed = jnp.concatenate([before, v_delayed[:, :-1]], axis=1)
        v_delayed = jnp.where((positions >= 1)[..., None], v_delayed, 0)
    return jnp.concatenate([v_current, v_delayed], axis=-1)


def cca_mix(
    q, k, v_current, v_delayed, weights, cos, sin, positions, state=None,
    *, norm_dtype, qk_mean=True, value_shift=True,
):  # fmt: skip
    """See the package."""
    (B, S, _), K, past = q.shape, weights.temperature.shape[0], weights.past
    C = k.shape[-1] // K
    dtype, wide = q.dtype, jnp.promote_types(q.dtype, jnp.float32)
    qk = jnp.concatenate([q, k], axis=-1)
    before = jnp.zeros((B, past, qk.shape[-1]), dtype) if state is None else state.qk.astype(dtype)

    # The row with the past in front of it; positions before a document's start are negative.
    row = jnp.concatenate([before, qk], axis=1)
    place = jnp.concatenate([positions[:, :1] - jnp.arange(past, 0, -1), positions], axis=1)

    def taps(x, weight, outside):
        """The taps of a convolution, newest first, each with its weight."""
        for d, w in enumerate(weight[::-1].astype(dtype).astype(wide)):
            yield jnp.where((place >= d)[..., None], _before(x, d), outside), w

    # Each stage accumulates in float32 at least and is rounded once.
    convolved, outside = row, jnp.zeros((), dtype)
    if weights.depthwise is not None:
        bias = weights.depthwise_bias.astype(dtype)
        total = bias.astype(wide)
        for tap, w in taps(convolved, weights.depthwise, outside):
            total = total + w * tap
        convolved, outside = total.astype(dtype), bias
    if weights.grouped is not None:
        total = weights.grouped_bias.astype(dtype).astype(wide).reshape(-1, C)
        for tap, w in taps(convolved, weights.grouped, outside):
            tap = tap.reshape(B, S + past, -1, C).astype(wide)
            total = total + einsum("bshc,hcd->bshd", tap, w)
        convolved = total.astype(dtype)
    convolved = convolved.reshape(B, S + past, -1, C)[:, past:]

    q, k = q.reshape(B, S, -1, C), k.reshape(B, S, K, C)
    new_q, new_k = mean_norm_rotate(q, k, convolved, weights, cos, sin, norm_dtype, qk_mean)
    v = values(v_current, v_delayed, positions, state, value_shift).reshape(k.shape)
    return new_q.astype(dtype), new_k.astype(dtype), v
