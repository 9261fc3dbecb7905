"""A small call of `decode_attention`: a long, a left-padded and an idle row."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def draw(key: jax.Array, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """`(args, kwargs)` of a call: B=3, H=4, K=2, C=16, a cache of T=40 positions."""
    B, H, K, T, C = 3, 4, 2, 40, 16
    keys = jax.random.split(key, 3)
    q = jax.random.normal(keys[0], (B, H, C), dtype)
    k_cache = jax.random.normal(keys[1], (B, K, T, C), dtype)
    v_cache = jax.random.normal(keys[2], (B, K, T, C), dtype)
    lengths = jnp.array([37, 12, 0], jnp.int32)
    start = jnp.array([0, 5, 0], jnp.int32)
    return (q, k_cache, v_cache, lengths), {"window": 24, "start": start}
