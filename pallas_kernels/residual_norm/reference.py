"""Residual scaling of both streams, their sum, and the RMSNorm that reads it."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, weight: jax.Array, *, eps: float, norm_dtype, out_dtype) -> jax.Array:
    """x / rms(x) * weight over the last axis: x is read in `norm_dtype`, statistics are float32
    at least, the normalised x is rounded to `norm_dtype` before the product with the weight.

    Args:
      x: [..., D].
      weight: [D].

    Returns:
      [..., D] in `out_dtype`.
    """
    x = x.astype(norm_dtype)
    wide = x.astype(jnp.promote_types(norm_dtype, jnp.float32))
    normed = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (weight.astype(norm_dtype) * normed.astype(norm_dtype)).astype(out_dtype)


def merge(mixer, stream, scales, merge_dtype, stream_dtype) -> jax.Array:
    """(mixer + b_h) * s_h + (stream + b_r) * s_r; see the package for the arguments."""
    mixer = mixer.astype(merge_dtype)
    if scales is not None:
        mixer_scale, mixer_bias, residual_scale, residual_bias = scales
        mixer = (mixer + mixer_bias.astype(merge_dtype)) * mixer_scale.astype(merge_dtype)
        # The parameters keep the precision they are stored in: the stream alone decides the width.
        stream = (stream + residual_bias.astype(stream.dtype)) * residual_scale.astype(stream.dtype)
    return (mixer + stream).astype(stream_dtype)


def residual_norm(
    mixer: jax.Array,
    stream: jax.Array,
    scales: tuple[jax.Array, jax.Array, jax.Array, jax.Array] | None,
    norm_weight: jax.Array | None,
    *,
    eps: float,
    merge_dtype,
    stream_dtype,
    norm_dtype,
) -> tuple[jax.Array, jax.Array | None]:
    """See the package."""
    out_dtype = mixer.dtype
    stream = merge(mixer, stream, scales, merge_dtype, stream_dtype)
    if norm_weight is None:
        return stream, None
    normed = rms_norm(stream, norm_weight, eps=eps, norm_dtype=norm_dtype, out_dtype=out_dtype)
    return stream, normed
