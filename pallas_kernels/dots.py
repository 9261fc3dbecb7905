"""Matrix products whose float32 operands are never cut to TF32, inside of kernels and outside.

Both XLA and Pallas do so on an NVIDIA GPU unless they are asked for more.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def dot(a: jax.Array, b: jax.Array, axis_a: int = 1, axis_b: int = 0) -> jax.Array:
    """Matmul of two matrices over one axis of each, in float32.

    Sums are float32 for any operands.
    """
    return lax.dot_general(
        a,
        b,
        (((axis_a,), (axis_b,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def precision(*operands: Any) -> lax.Precision | None:
    """What to ask XLA for in a product of `operands`, arrays or dtypes.

    Full precision where they are multiplied as float32. Other dtypes keep the default, with which
    bfloat16 runs on matrix units; so does a caller's `jax.default_matmul_precision` for them.
    """
    return lax.Precision.HIGHEST if jnp.result_type(*operands) == jnp.float32 else None


def einsum(subscripts: str, a: jax.Array, b: jax.Array, sums: Any = None) -> jax.Array:
    """`jnp.einsum` of two arrays at the `precision` of their product.

    Args:
      sums: dtype of the sums and of the result; that of the operands where None.
    """
    return jnp.einsum(subscripts, a, b, precision=precision(a, b), preferred_element_type=sums)


def matmul(a: jax.Array, b: jax.Array, sums: Any = None) -> jax.Array:
    """`jnp.matmul` likewise."""
    return jnp.matmul(a, b, precision=precision(a, b), preferred_element_type=sums)
