"""The definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.dots import matmul
from pallas_kernels.quantized import Quantized


def projections(x: jax.Array, weights: tuple[jax.Array | Quantized, ...]) -> list[jax.Array]:
    """See the package."""
    return [_project(x, w) if isinstance(w, Quantized) else matmul(x, w) for w in weights]


def _project(x: jax.Array, weights: Quantized) -> jax.Array:
    """In float32 at least: quantized weights are not rounded anew."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    y = jnp.matmul(x.astype(wide), weights.dequantize(wide), precision="highest")
    return y.astype(x.dtype)
