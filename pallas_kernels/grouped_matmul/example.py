"""A small call of `experts`."""

from __future__ import annotations

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
    with one for 128 rows of it, fp4 with one for 32.
    """
    T, sizes = form.tokens, ZAYA1_8B
    E, D, F = sizes.experts, sizes.hidden, sizes.expert_width
    index = np.random.default_rng(0).integers(E + 1, size=(T, sizes.top_k)).astype(np.int32)
    x, weight, gate_up, down = (
        jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        for shape in ((T, D), index.shape, (E, D, 2 * F), (E, F, D))
    )
    calls = {"": Call((x, index, weight, gate_up, down))}
    if not form.trains:
        for kind in KINDS:
            both = [jax.eval_shape(lambda w, k=kind: quantize(w, k), w) for w in (gate_up, down)]
            calls[kind] = Call((x, index, weight, *both))
    return calls
