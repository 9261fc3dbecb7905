"""Projections by quantized weights, portable; and the product with a quantized embedding.

On a CPU decoding is reading weights: few tokens read them as they are stored (see
`grouped_matmul.quantized_xla`). On a GPU a scale a column multiplies the product, so that XLA takes
the conversion of 8 bits into its matmul. Where there are many tokens, or scales of groups, a matrix
is converted first: one of attention is a few megabytes, and is never kept.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import dispatch
from pallas_kernels.dots import matmul, precision
from pallas_kernels.grouped_matmul.quantized_xla import product
from pallas_kernels.quantized import Quantized

FEW = 32  # tokens of a CPU's call up to which weights are read as they are stored
BLOCK = 128  # rows of an embedding that a CPU converts at a time: they stay in its cache


def projections(x: jax.Array, weights: tuple[jax.Array | Quantized, ...]) -> list[jax.Array]:
    """See the package."""
    return [_project(x, w) if isinstance(w, Quantized) else matmul(x, w) for w in weights]


def _project(x: jax.Array, weights: Quantized) -> jax.Array:
    wide = jnp.promote_types(x.dtype, jnp.float32)
    if dispatch.platform() == "cpu":
        if len(x) <= FEW:
            return product(x, jax.tree.map(lambda a: a[None], weights), 0)
        return matmul(x.astype(wide), weights.dequantize(wide)).astype(x.dtype)
    if weights.group == weights.shape[0]:
        numbers = weights.numbers().astype(x.dtype)  # exact: eight bits fit into bfloat16
        y = matmul(x, numbers, wide)
        return (y * weights.scales.astype(wide)).astype(x.dtype)
    return matmul(x, weights.dequantize(x.dtype))


def tied(x: jax.Array, embedding: Quantized, dtype: jnp.dtype) -> jax.Array:
    """`x @ E.T` for an embedding E [V, D] stored as V matrices [D, 1] with one scale each.

    Args:
      x: [..., D].
      embedding: of shape [V, D, 1], 8 bits, `group` D.
      dtype: of the result; sums are float32 at least.

    Returns:
      [..., V].
    """
    wide = jnp.promote_types(x.dtype, jnp.float32)
    rows, scales = x.reshape(-1, x.shape[-1]), embedding.scales[:, 0, 0].astype(wide)
    numbers = embedding.numbers()[..., 0]
    contract = (((1,), (1,)), ((), ()))
    if dispatch.platform() != "cpu":
        numbers = numbers.astype(x.dtype)
        y = lax.dot_general(
            rows, numbers, contract, precision=precision(rows, numbers), preferred_element_type=wide
        )
        return (y * scales).astype(dtype).reshape(*x.shape[:-1], -1)
    rows, size = rows.astype(wide), len(numbers)
    block = min(BLOCK, size)

    def add(i, y):
        first = jnp.minimum(i * block, size - block)  # the last block may begin in the one before
        some = lax.dynamic_slice_in_dim(numbers, first, block).astype(wide)
        part = lax.dot_general(rows, some, contract, precision=precision(rows, some))
        return lax.dynamic_update_slice(y, part, (0, first))

    y = lax.fori_loop(0, -(-size // block), add, jnp.zeros((len(rows), size), wide))
    return (y * scales).astype(dtype).reshape(*x.shape[:-1], -1)
