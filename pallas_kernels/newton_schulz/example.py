"""A small call of the op."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.draws import Draws
from pallas_kernels.shapes import ZAYA1_8B, Call, Form


def draw(key: jax.Array | int, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """Two wide matrices, neither side a power of two."""
    return (Draws(key, dtype).normal((2, 40, 72)),), {"products": jnp.dtype(jnp.float32)}


def shapes_8b(form: Form) -> dict[str, Call]:
    """Matrices of a layer: the experts', as many as Muon takes at a time, and one of the router."""
    if not form.trains:
        return {}
    D, F, R = ZAYA1_8B.hidden, ZAYA1_8B.expert_width, ZAYA1_8B.router_width

    def call(*shape: int, products=jnp.float32) -> Call:
        x = jax.ShapeDtypeStruct(shape, jnp.float32)
        return Call((x,), {"iterations": 5, "products": jnp.dtype(products)}, trains=False)

    return {
        "experts": call(2, F, D),
        "experts_bfloat16": call(2, F, D, products=jnp.bfloat16),
        "router": call(1, D, R),
    }
