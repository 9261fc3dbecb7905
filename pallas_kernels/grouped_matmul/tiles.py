"""What the kernels for many and for few tokens share."""

from __future__ import annotations

import jax
import jax.numpy as jnp

UNIT = 16  # rows and columns of the least matrix instruction


def block_of(size: int, most: int) -> int:
    """The largest power of two, at most `most` (itself one), that cuts `size` evenly."""
    return min(size & -size, most)


def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """silu(gate) * up, computed in float32, in their dtype."""
    wide = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
    return wide.astype(gate.dtype)


def scaled(rows: jax.Array, probability: jax.Array) -> jax.Array:
    """Rows times the probability of each, computed in float32, in the dtype of `rows`."""
    wide = rows.astype(jnp.float32) * probability.astype(jnp.float32)[:, None]
    return wide.astype(rows.dtype)
