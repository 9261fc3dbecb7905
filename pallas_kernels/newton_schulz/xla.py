"""The same iteration with half of each symmetric product left out."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.newton_schulz.reference import COEFFICIENTS, unit, wide_dtype

BLOCK = 512
"""Rows up to which a symmetric product is computed whole."""


def symmetric_product(x: jax.Array, sums=None) -> jax.Array:
    """x x^T of [..., m, n], where only one of two mirrored blocks is multiplied out.

    With halves of halves down to `BLOCK` rows this takes (1/2 + BLOCK / 2m) of the full product's
    operations: 5/8 for m = 2048.

    Args:
      sums: dtype of the result; that of x where None.
    """
    m = x.shape[-2]
    if m <= BLOCK:
        return _product(x, x.mT, sums)
    top, bottom = x[..., : m // 2, :], x[..., m // 2 :, :]
    corner = _product(bottom, top.mT, sums)
    upper = jnp.concatenate([symmetric_product(top, sums), corner.mT], axis=-1)
    lower = jnp.concatenate([corner, symmetric_product(bottom, sums)], axis=-1)
    return jnp.concatenate([upper, lower], axis=-2)


def newton_schulz(x: jax.Array, *, iterations: int = 5, products) -> jax.Array:
    """See the package."""
    a, b, c = COEFFICIENTS
    result, sums = wide_dtype(x.dtype), wide_dtype(products)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x  # products of the smaller side
    x = unit(x).astype(products)
    identity = jnp.eye(x.shape[-2], dtype=sums)

    def step(_: int, x: jax.Array) -> jax.Array:
        gram = symmetric_product(x, sums).astype(products)
        factor = a * identity + b * gram.astype(sums) + c * symmetric_product(gram, sums)
        return _product(factor.astype(products), x, sums).astype(products)

    x = jax.lax.fori_loop(0, iterations, step, x).astype(result)
    return x.mT if tall else x


def _product(left: jax.Array, right: jax.Array, sums) -> jax.Array:
    return jnp.matmul(left, right, precision="highest", preferred_element_type=sums)
