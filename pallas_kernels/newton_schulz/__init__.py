"""Newton-Schulz: nearly the orthogonal factor of a matrix, for Muon (report Table III).

For a matrix X [m, n], m <= n (a tall one is transposed on the way in and out),

    X <- X / max(|X|_F, 1e-7)
    A  = X X^T
    F  = a I + b A + c A A          A and F are symmetric
    X <- F X                        `iterations` times

which brings every singular value near 1 and leaves the singular vectors. Of the two symmetric
products only one triangle is multiplied out, and mirrored: per step 3 m^2 n + m^3 multiplications
and additions, not 4 m^2 n + 2 m^3 (m = n: 4 m^3 instead of 6 m^3).

Source: Keller Jordan, Muon (2024); the coefficients are his quintic's.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.newton_schulz import reference, triton, xla
from pallas_kernels.newton_schulz.reference import COEFFICIENTS, EPS

__all__ = ["COEFFICIENTS", "EPS", "IMPLEMENTATIONS", "SUPPORTS", "newton_schulz"]

IMPLEMENTATIONS: dict[str, Callable] = {
    "triton": triton.newton_schulz,
    "xla": xla.newton_schulz,
    "reference": reference.newton_schulz,
}
SUPPORTS = {"triton": triton.supports}


def newton_schulz(
    x: jax.Array,
    iterations: int = 5,
    *,
    products: jnp.dtype | str | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Newton-Schulz: nearly U V^T of x = U S V^T, for every matrix of a batch.

    Five iterations bring singular values down to some hundredths of the Frobenius norm into
    [0.68, 1.14]; a square Gaussian matrix keeps a few that are smaller. Only the forward pass is
    there: an optimizer is not differentiated.

    Args:
      x: [..., m, n] floating.
      iterations: of the quintic; static.
      products: dtype of X, A and F between the products, whose sums are float32 at least. None is
        float32 at full precision (float64 if x is); `bfloat16` is eight times faster on a GPU, and
        rounds each of the three 2^-9.
      implementation: see `pallas_kernels.dispatch`.

    Returns:
      [..., m, n] in float32, or float64 if x is; 0 where a matrix is 0.

    Raises:
      ValueError: x is no floating matrix, iterations are negative, `products` is no floating
        dtype, an unknown implementation or one that does not take this call.
    """
    if x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"newton_schulz: want floating [..., m, n]; got {x.dtype} {x.shape}")
    if iterations < 0:
        raise ValueError(f"newton_schulz: iterations must not be negative, got {iterations}")
    dtype = jnp.dtype(products or jnp.promote_types(x.dtype, jnp.float32))
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"newton_schulz: products must have a floating dtype, not {dtype}")
    return dispatch.call(
        "newton_schulz",
        IMPLEMENTATIONS,
        SUPPORTS,
        implementation,
        x,
        iterations=iterations,
        products=dtype,
    )
