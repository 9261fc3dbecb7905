"""A small call of `decode_attention`: a long, a left-padded and an idle row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.draws import Draws
from pallas_kernels.shapes import ZAYA1_8B, Call, Form


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


def shapes_8b(form: Form) -> dict[str, Call]:
    """A layer's attention to caches of as many positions as are in use."""
    if not form.decodes:
        return {}
    B, T, sizes = form.rows, form.keys, ZAYA1_8B
    q = jax.ShapeDtypeStruct((B, sizes.heads, sizes.channels), jnp.bfloat16)
    cache = jax.ShapeDtypeStruct((B, sizes.kv_heads, T, sizes.channels), jnp.bfloat16)
    lengths = np.full((B,), T, np.int32)
    page = 256
    paged = jax.ShapeDtypeStruct(
        (B * T // page, sizes.kv_heads, page, sizes.channels), jnp.bfloat16
    )
    pages = np.arange(B * T // page, dtype=np.int32).reshape(B, -1)
    return {
        "": Call((q, cache, cache, lengths)),
        "paged": Call((q, paged, paged, lengths), {"pages": pages}),
    }
