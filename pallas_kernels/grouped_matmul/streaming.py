"""Matmuls with one expert's weights, chosen at run time, without a copy of them in memory.

XLA's CPU backend does not fuse a dynamic_slice into a matmul: the slice is copied first. Taken in
pieces that stay in the last-level cache, the copy causes no memory traffic, and reading the weights
once is what remains. Pieces of half a megabyte were no faster than of two, and cost more launches.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import dots

PIECE_BYTES = 2**21


def _cut(weights: jax.Array) -> tuple[jax.Array, int]:
    """[E, R, C] -> ([E * n, R / n, C], n), with pieces of at most PIECE_BYTES where R halves."""
    experts, rows, columns = weights.shape
    size, pieces = rows * columns * weights.dtype.itemsize, 1
    while size > PIECE_BYTES * pieces and rows % (2 * pieces) == 0:
        pieces *= 2
    return weights.reshape(experts * pieces, rows // pieces, columns), pieces


def matmul(rows: jax.Array, weights: jax.Array, expert: jax.Array) -> jax.Array:
    """`rows [B, R] @ weights[expert]` for weights [E, R, C]: [B, C] in the dtype of `rows`."""
    cut, pieces = _cut(weights)
    accumulator = jnp.promote_types(rows.dtype, jnp.float32)

    def piece(i, total):
        part = lax.dynamic_index_in_dim(cut, expert * pieces + i, keepdims=False)
        left = lax.dynamic_slice_in_dim(rows, i * part.shape[0], part.shape[0], axis=1)
        return total + dots.matmul(left, part, accumulator)

    total = jnp.zeros((rows.shape[0], cut.shape[2]), accumulator)
    return lax.fori_loop(0, pieces, piece, total).astype(rows.dtype)


def matmul_transposed(rows: jax.Array, weights: jax.Array, expert: jax.Array) -> jax.Array:
    """`rows [B, C] @ weights[expert].T` for weights [E, R, C]: [B, R] in the dtype of `rows`."""
    cut, pieces = _cut(weights)

    def piece(i, out):
        part = lax.dynamic_index_in_dim(cut, expert * pieces + i, keepdims=False)
        more = dots.matmul(rows, part.T)
        return lax.dynamic_update_slice_in_dim(out, more, i * part.shape[0], axis=1)

    out = jnp.zeros((rows.shape[0], weights.shape[1]), rows.dtype)
    return lax.fori_loop(0, pieces, piece, out)
