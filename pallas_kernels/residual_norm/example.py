"""A small call of the op."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.draws import Draws


def draw(key: jax.Array | int, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """Arguments for T=24 tokens of width 64."""
    draws = Draws(key, dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    mixer, stream = draws.normal((24, 64)), draws.normal((24, 64), dtype=wide)
    scales = tuple(draws.normal((64,), 0.5, mean=1) for _ in range(4))
    norm = draws.normal((64,), 0.5, mean=1)
    options = dict(eps=1e-5, merge_dtype=wide, stream_dtype=wide, norm_dtype=wide)
    return (mixer, stream, scales, norm), options
