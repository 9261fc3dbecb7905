"""A small call of the op."""

from __future__ import annotations

from typing import Any

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
    """q, k and both halves of v of a layer, and its output. Varied: in float32."""
    if not form.decodes:
        return {}
    size = ZAYA1_8B
    q, half = size.heads * size.channels, size.kv_heads * size.channels // 2
    calls = {
        "": _call(form, size.hidden, (q, 2 * half, half, half)),
        "output": _call(form, q, (size.hidden,)),
    }
    if form.varied:
        calls["float32"] = _call(form, size.hidden, (q, 2 * half, half, half), jnp.float32)
    return calls


def _call(form: Form, hidden: int, widths: tuple[int, ...], dtype: Any = jnp.bfloat16) -> Call:
    weights = tuple(jax.ShapeDtypeStruct((hidden, n), dtype) for n in widths)
    return Call((jax.ShapeDtypeStruct((form.tokens, hidden), dtype), weights))
