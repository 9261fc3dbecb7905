"""What the kernels for many and for few tokens share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

UNIT = 16  # rows and columns of the least matrix instruction


def block_of(size: int, most: int) -> int:
    """The largest power of two, at most `most` (itself one), that cuts `size` evenly."""
    return min(size & -size, most)


def dot(a: jax.Array, b: jax.Array, axis_a: int = 1, axis_b: int = 0) -> jax.Array:
    """Matmul over one axis of each, summed in float32; float32 operands are never cut to TF32."""
    return lax.dot_general(
        a,
        b,
        (((axis_a,), (axis_b,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up, computed in float32, in their dtype."""
    wide = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
    return wide.astype(gate.dtype)


def scaled(rows: jax.Array, probability: jax.Array) -> jax.Array:
    """Rows times the probability of each, computed in float32, in the dtype of `rows`."""
    wide = rows.astype(jnp.float32) * probability.astype(jnp.float32)[:, None]
    return wide.astype(rows.dtype)
