"""A small call of `experts`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.draws import Draws
from pallas_kernels.quantized import KINDS, quantize
from pallas_kernels.shapes import ZAYA1_8B, Call, Form


def draw(key: jax.Array | int, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """`(args, kwargs)`: 96 tokens over 5 experts and the skip class, one expert crowded."""
    tokens, hidden, width, num_experts = 96, 32, 48, 5
    draws = Draws(key, dtype)
    index = draws.numpy.integers(num_experts + 1, size=(tokens, 1))
    index[: tokens // 2] = 1
    weight = draws.array(draws.numpy.random((tokens, 1)))
    x = draws.normal((tokens, hidden))
    gate_up = draws.normal((num_experts, hidden, 2 * width), hidden**-0.5)
    down = draws.normal((num_experts, width, hidden), width**-0.5)
    return (x, draws.array(index, jnp.int32), weight, gate_up, down), {}


def shapes_8b(form: Form) -> dict[str, Call]:
    """A layer's experts on all tokens of a form, each of which drew one of them or skip.

    Where nothing is trained also with quantized weights: int8 and fp8 with a scale a column, int4
    with one for 128 rows of it, fp4 with one for 32. Varied: in float32, and so few tokens for each
    expert that tiles are short.
    """
    calls = {"": _call(form.tokens)}
    if not form.trains:
        calls |= {kind: _call(form.tokens, kind) for kind in KINDS}
    if form.varied:
        calls["float32"] = _call(form.tokens, dtype=jnp.float32)
    if form.varied and form.trains:
        calls["short_tiles"] = _call(SHORT)
    return calls


SHORT = 512
"""Tokens, 30 an expert: more than decode, and too few for tiles of 128 rows."""


def _call(tokens: int, kind: str = "", dtype: Any = jnp.bfloat16) -> Call:
    E, D, F, k = ZAYA1_8B.experts, ZAYA1_8B.hidden, ZAYA1_8B.expert_width, ZAYA1_8B.top_k
    index = np.random.default_rng(0).integers(E + 1, size=(tokens, k)).astype(np.int32)
    x, weight, *both = (
        jax.ShapeDtypeStruct(shape, dtype)
        for shape in ((tokens, D), index.shape, (E, D, 2 * F), (E, F, D))
    )
    if kind:
        both = [jax.eval_shape(lambda w: quantize(w, kind), w) for w in both]
    return Call((x, index, weight, *both))
