"""The same mix with less work: only the outputs' taps are computed, and the head-wise stage is one
batched matmul over taps and heads."""

from __future__ import annotations

import functools

import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.cca_mix.reference import mean_norm_rotate, values
from pallas_kernels.dots import einsum


def cca_mix(
    q, k, v_current, v_delayed, weights, cos, sin, positions, state=None,
    *, norm_dtype, qk_mean=True, value_shift=True,
):  # fmt: skip
    """See the package."""
    (B, S, _), K = q.shape, weights.temperature.shape[0]
    C, dtype = k.shape[-1] // K, q.dtype
    row = jnp.concatenate([q, k], axis=-1)
    if weights.past:
        before = jnp.zeros((B, weights.past, row.shape[-1])) if state is None else state.qk
        row = jnp.concatenate([before.astype(dtype), row], axis=1)
    if weights.depthwise is not None:
        row = _depthwise(row, weights, positions)
    if weights.grouped is None:
        convolved = row.reshape(B, S, -1, C)
    else:
        convolved = _grouped(row, weights, positions)

    q, k = q.reshape(B, S, -1, C), k.reshape(B, S, K, C)
    new_q, new_k = mean_norm_rotate(q, k, convolved, weights, cos, sin, norm_dtype, qk_mean)
    v = values(v_current, v_delayed, positions, state, value_shift).reshape(k.shape)
    return new_q.astype(dtype), new_k.astype(dtype), v


def _depthwise(row, weights, positions):
    """Stage one at the row and at what stage two reads before it: [B, K1 - 1 + S, N]."""
    depthwise, bias = weights.depthwise.astype(row.dtype), weights.depthwise_bias.astype(row.dtype)
    wide = jnp.promote_types(row.dtype, jnp.float32)
    K0 = len(depthwise)
    tokens = row.shape[1] - (K0 - 1)
    ahead = jnp.arange(tokens - positions.shape[1], 0, -1)
    place = jnp.concatenate([positions[:, :1] - ahead, positions], axis=1)
    total = bias.astype(wide)
    for d in range(K0):
        tap = row[:, K0 - 1 - d : K0 - 1 - d + tokens]
        tap = jnp.where((place >= d)[..., None], tap, 0)
        total = total + depthwise[K0 - 1 - d].astype(wide) * tap
    return total.astype(row.dtype)


def _grouped(row, weights, positions):
    """Stage two, [B, K1 - 1 + S, N] -> [B, S, heads, C]."""
    (K1, heads, C, _), (B, S) = weights.grouped.shape, positions.shape
    dtype, wide = row.dtype, jnp.promote_types(row.dtype, jnp.float32)
    outside = jnp.zeros((), dtype)  # what a tap reads in front of its document
    if weights.depthwise_bias is not None:
        outside = weights.depthwise_bias.astype(dtype)
    taps = []
    for d in reversed(range(K1)):
        tap = row[:, K1 - 1 - d : K1 - 1 - d + S]
        if d:
            tap = jnp.where((positions >= d)[..., None], tap, outside)
        taps.append(tap.reshape(B, S, heads, C))
    # Taps and heads side by side in front make one batched matmul, which reads the weights as they
    # lie. (As one product over taps and channels it would be half as fast on CPU: XLA transposes
    # both operands and takes a slower matmul.)
    mixed = jnp.stack(taps).reshape(K1, B * S, heads, C).swapaxes(1, 2)
    mixed, grouped = mixed.reshape(K1 * heads, B * S, C), weights.grouped.astype(dtype)
    if dispatch.platform() == "cpu":  # its batched dots cannot give a wider result
        mixed, grouped = mixed.astype(wide), grouped.astype(wide)
    grouped = grouped.reshape(K1 * heads, C, C)
    convolved = einsum("hnc,hcd->hnd", mixed, grouped, wide)
    # Added one by one: a reduction over so few is slow on CPU.
    convolved = functools.reduce(jnp.add, convolved.reshape(K1, heads, B, S, C))
    bias = weights.grouped_bias.astype(dtype).astype(wide).reshape(heads, 1, 1, C)
    return (convolved + bias).transpose(1, 2, 0, 3).astype(dtype)
