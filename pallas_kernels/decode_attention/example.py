"""A small call of `decode_attention`: a long, a left-padded and an idle row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.draws import Draws


def draw(key: jax.Array | int, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """`(args, kwargs)` of a call: B=3, H=4, K=2, C=16, a cache of T=40 positions."""
    B, H, K, T, C = 3, 4, 2, 40, 16
    draws = Draws(key, dtype)
    q = draws.normal((B, H, C))
    k_cache = draws.normal((B, K, T, C))
    v_cache = draws.normal((B, K, T, C))
    lengths = draws.array(np.array([37, 12, 0]), jnp.int32)
    start = draws.array(np.array([0, 5, 0]), jnp.int32)
    return (q, k_cache, v_cache, lengths), {"window": 24, "start": start}
