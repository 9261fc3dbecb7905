"""A small call of the op."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def draw(key: jax.Array, dtype) -> tuple[tuple, dict]:
    """Arguments for T=24 tokens of width 64."""
    keys = jax.random.split(key, 7)
    mixer = jax.random.normal(keys[0], (24, 64), dtype)
    stream = jax.random.normal(keys[1], (24, 64), jnp.promote_types(dtype, jnp.float32))
    scales = tuple(1 + 0.5 * jax.random.normal(k, (64,), dtype) for k in keys[2:6])
    norm = 1 + 0.5 * jax.random.normal(keys[6], (64,), dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    options = dict(eps=1e-5, merge_dtype=wide, stream_dtype=wide, norm_dtype=wide)
    return (mixer, stream, scales, norm), options
