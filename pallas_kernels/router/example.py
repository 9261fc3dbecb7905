"""A small call of the op."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.draws import Draws
from pallas_kernels.router.types import Weights
from pallas_kernels.shapes import ZAYA1_8B, Call, Form


def draw(key: jax.Array | int, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """Arguments for T=24 tokens, D=32, R=16, 5 classes; the last four tokens are padding."""
    T, D, R, classes = 24, 32, 16, 5
    draws = Draws(key, dtype)
    weights = Weights(
        down=draws.normal((D, R), D**-0.5),
        down_bias=draws.normal((R,)),
        state_scale=draws.normal((R,)),
        norm=draws.normal((R,), 0.3, mean=1),
        fc1=draws.normal((R, R), R**-0.5),
        fc1_bias=draws.normal((R,)),
        fc2=draws.normal((R, R), R**-0.5),
        fc2_bias=draws.normal((R,)),
        out=draws.normal((R, classes)),
    )
    wide = jnp.promote_types(dtype, jnp.float32)
    biases = draws.normal((classes,), 0.1, dtype=wide)
    live = draws.array(np.arange(T) < T - 4, jnp.bool_)
    args = (draws.normal((T, D)), draws.normal((T, R)), weights, biases, live)
    return args, {"top_k": 1, "eps": 1e-5, "norm_dtype": wide, "softmax_dtype": wide}


def shapes_8b(form: Form) -> dict[str, Call]:
    """The router of a layer behind the first, in bfloat16, with padding in the batch.

    Varied: in float32.
    """
    calls = {"": _call(form)}
    if form.varied:
        calls["float32"] = _call(form, jnp.float32)
    return calls


def _call(form: Form, dtype: Any = jnp.bfloat16) -> Call:
    T, size = form.tokens, ZAYA1_8B
    D, R, classes = size.hidden, size.router_width, size.experts + 1

    def shaped(*shape: int, dtype: Any = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    weights = Weights(
        down=shaped(D, R),
        down_bias=shaped(R),
        state_scale=shaped(R),
        norm=shaped(R),
        fc1=shaped(R, R),
        fc1_bias=shaped(R),
        fc2=shaped(R, R),
        fc2_bias=shaped(R),
        out=shaped(R, classes),
    )
    wide = jnp.float32
    args = (
        shaped(T, D),
        shaped(T, R),
        weights,
        shaped(classes, dtype=wide),
        shaped(T, dtype=jnp.bool_),
    )
    options = dict(top_k=1, eps=size.norm_eps, norm_dtype=wide, softmax_dtype=wide)
    return Call(args, options)
