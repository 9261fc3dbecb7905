"""A small call of the op."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.draws import Draws
from pallas_kernels.shapes import ZAYA1_8B, Call, Form


def draw(key: jax.Array | int, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """Arguments for T=24 tokens of width 64."""
    draws = Draws(key, dtype)
    wide = jnp.promote_types(dtype, jnp.float32)
    mixer, stream = draws.normal((24, 64)), draws.normal((24, 64), dtype=wide)
    scales = tuple(draws.normal((64,), 0.5, mean=1) for _ in range(4))
    norm = draws.normal((64,), 0.5, mean=1)
    options = dict(eps=1e-5, merge_dtype=wide, stream_dtype=wide, norm_dtype=wide)
    return (mixer, stream, scales, norm), options


def shapes_8b(form: Form) -> dict[str, Call]:
    """Every merge of a layer: a bfloat16 mixer into the float32 stream, and the norm behind it.

    Varied: all in float32, and all in bfloat16.
    """
    calls = {"": _call(form, jnp.bfloat16, jnp.float32)}
    if form.varied:
        calls["float32"] = _call(form, jnp.float32, jnp.float32)
        calls["bfloat16"] = _call(form, jnp.bfloat16, jnp.bfloat16)
    return calls


def _call(form: Form, narrow: Any, wide: Any) -> Call:
    T, D = form.tokens, ZAYA1_8B.hidden
    vector = jax.ShapeDtypeStruct((D,), narrow)
    mixer = jax.ShapeDtypeStruct((T, D), narrow)
    stream = jax.ShapeDtypeStruct((T, D), wide)
    options = dict(eps=ZAYA1_8B.norm_eps, merge_dtype=wide, stream_dtype=wide, norm_dtype=wide)
    return Call((mixer, stream, (vector,) * 4, vector), options)
