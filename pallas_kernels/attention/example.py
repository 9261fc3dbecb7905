"""A small call of `attention`: two packed rows with padding, grouped heads, an odd length."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def draw(key: jax.Array, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """`(args, kwargs)` of a call: B=2, S=37, H=4, K=2, C=16, two documents and padding a row."""
    B, S, H, K, C = 2, 37, 4, 2, 16
    keys = jax.random.split(key, 3)
    q = jax.random.normal(keys[0], (B, S, H, C), dtype)
    k = jax.random.normal(keys[1], (B, S, K, C), dtype)
    v = jax.random.normal(keys[2], (B, S, K, C), dtype)
    ends = jnp.array([[13, 37], [20, 31]])  # the second row ends in six positions of padding
    position = jnp.arange(S)
    segment_ids = 1 + jnp.sum(position[None, :, None] >= ends[:, None, :1], axis=-1)
    segment_ids = jnp.where(position < ends[:, 1:], segment_ids, 0).astype(jnp.int32)
    return (q, k, v, segment_ids), {"window": 16}
