"""The experts as they are defined: every expert on every token, masked by the router's choice."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.dots import matmul
from pallas_kernels.quantized import Quantized


def experts(
    x: jax.Array,
    index: jax.Array,
    weight: jax.Array,
    gate_up: jax.Array | Quantized,
    down: jax.Array | Quantized,
) -> jax.Array:
    """See `pallas_kernels.grouped_matmul.experts`; E/k times the work that is needed."""
    y = jnp.zeros_like(x)
    for expert in range(gate_up.shape[0]):
        gate, up = jnp.split(_matmul(x, gate_up[expert]), 2, axis=-1)
        output = _matmul(jax.nn.silu(gate) * up, down[expert])
        probability = jnp.where(index == expert, weight, 0).sum(-1, keepdims=True)
        y = y + (output * probability).astype(x.dtype)
    return y


def _matmul(rows: jax.Array, weights: jax.Array | Quantized) -> jax.Array:
    """Rows times a matrix, in the dtype of the rows; quantized weights are not rounded to it."""
    if not isinstance(weights, Quantized):
        return matmul(rows, weights)
    wide = jnp.promote_types(rows.dtype, jnp.float32)
    product = jnp.matmul(rows.astype(wide), weights.dequantize(wide), precision="highest")
    return product.astype(rows.dtype)
