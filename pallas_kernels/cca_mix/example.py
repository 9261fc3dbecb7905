"""A small call of the op."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.cca_mix.types import State, Weights


def draw(
    key: jax.Array,
    dtype,
    *,
    shape: tuple[int, int] = (2, 19),
    heads: tuple[int, int] = (4, 2),
    channels: int = 16,
    kernels: tuple[int, int] = (2, 2),
    with_state: bool = False,
) -> tuple[tuple, dict]:
    """Arguments for a batch of packed rows: B, S = shape; H, K = heads; K0, K1 = kernels."""
    (B, S), (H, K), (K0, K1) = shape, heads, kernels
    N = (H + K) * channels
    keys = iter(jax.random.split(key, 16))

    def normal(*dims):
        return jax.random.normal(next(keys), dims, dtype)

    weights = Weights(
        depthwise=normal(K0, N),
        depthwise_bias=normal(N),
        grouped=normal(K1, H + K, channels, channels) * channels**-0.5,
        grouped_bias=normal(N),
        temperature=1 + 0.3 * normal(K),
    )
    starts = jax.random.bernoulli(next(keys), 0.25, (B, S)).at[:, 0].set(not with_state)
    index = jnp.arange(S)
    last_start = jax.lax.cummax(jnp.where(starts, index, -1), axis=1)
    # With a state, the first document began five tokens before the row.
    positions = index - jnp.where(last_start < 0, -5, last_start)
    angle = positions[..., None] * 0.3 ** jnp.arange(channels // 4)
    state = State(normal(B, K0 + K1 - 2, N), normal(B, K * channels // 2)) if with_state else None
    args = (
        normal(B, S, H * channels),
        normal(B, S, K * channels),
        normal(B, S, K * channels // 2),
        normal(B, S, K * channels // 2),
        weights,
        jnp.cos(angle).astype(dtype),
        jnp.sin(angle).astype(dtype),
        positions.astype(jnp.int32),
        state,
    )
    return args, {"norm_dtype": jnp.promote_types(dtype, jnp.float32)}
