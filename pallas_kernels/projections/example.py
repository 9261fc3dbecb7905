"""A small call of the op."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.draws import Draws
from pallas_kernels.shapes import ZAYA1_8B, Call, Form


def draw(key: jax.Array | int, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """Five tokens through three matrices of different widths."""
    draws = Draws(key, dtype)
    weights = tuple(draws.normal((48, width), 48**-0.5) for width in (64, 32, 16))
    return (draws.normal((5, 48)), weights), {}


def shapes_8b(form: Form) -> dict[str, Call]:
    """q, k and both halves of v of a layer."""
    if not form.decodes:
        return {}
    size = ZAYA1_8B
    half = size.kv_heads * size.channels // 2
    widths = (size.heads * size.channels, size.kv_heads * size.channels, half, half)
    weights = tuple(jax.ShapeDtypeStruct((size.hidden, n), jnp.bfloat16) for n in widths)
    return {"": Call((jax.ShapeDtypeStruct((form.tokens, size.hidden), jnp.bfloat16), weights))}
