"""The definition, product by product."""

from __future__ import annotations

import jax
import jax.numpy as jnp

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""a, b, c of Keller Jordan's quintic: steepest at 0, and then within about [0.7, 1.2] of 1."""
EPS = 1e-7
"""Norm below which a matrix is not blown up to unit size (that of torch)."""


def wide_dtype(dtype) -> jnp.dtype:
    """float32, or float64 if `dtype` is: of sums and results."""
    return jnp.promote_types(dtype, jnp.float32)


def unit(x: jax.Array) -> jax.Array:
    """x over its Frobenius norm, in float32 at least."""
    x = x.astype(wide_dtype(x.dtype))
    norm = jnp.linalg.norm(x, axis=(-2, -1), keepdims=True)
    return x / jnp.maximum(norm, EPS)


def newton_schulz(x: jax.Array, *, iterations: int = 5, products) -> jax.Array:
    """See the package."""
    a, b, c = COEFFICIENTS
    result, sums = wide_dtype(x.dtype), wide_dtype(products)
    tall = x.shape[-2] > x.shape[-1]
    x = unit(x.mT if tall else x).astype(products)

    def product(left, right):
        return jnp.matmul(left, right, precision="highest", preferred_element_type=sums)

    for _ in range(iterations):
        gram = product(x, x.mT).astype(products)
        factor = b * gram.astype(sums) + c * product(gram, gram)
        factor = (a * jnp.eye(x.shape[-2], dtype=sums) + factor).astype(products)
        x = product(factor, x).astype(products)
    x = x.astype(result)
    return x.mT if tall else x
