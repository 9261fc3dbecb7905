"""The matrix product of the Triton kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def dot(a: jax.Array, b: jax.Array, axis_a: int = 1, axis_b: int = 0) -> jax.Array:
    """Matmul of two matrices over one axis of each, in float32.

    Sums are float32 for any operands; those of float32 are never cut to TF32, which is what Pallas
    lowers to by default.
    """
    return lax.dot_general(
        a,
        b,
        (((axis_a,), (axis_b,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
