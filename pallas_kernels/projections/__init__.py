"""Several projections of the same few tokens in one launch: q, k and both halves of v, to decode.

For many tokens there is nothing to gain, nor is there a backward pass: training joins the weights
into one matrix (`zaya_jax.model.attention.base.project`). For few, that copy would cost more than
the product, and apart they are as many launches as matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.projections import quantized, reference, triton
from pallas_kernels.projections.quantized import tied
from pallas_kernels.quantized import Quantized, forward_only

__all__ = ["IMPLEMENTATIONS", "SUPPORTS", "projections", "tied"]

# Matmuls: XLA has a library's, or its own.
IMPLEMENTATIONS: dict[str, Callable] = {
    "triton": triton.projections,
    "xla": reference.projections,
    "reference": reference.projections,
}
# Where a matrix is quantized; forward only.
QUANTIZED: dict[str, Callable] = {
    "xla": forward_only("projections", quantized.projections),
    "reference": forward_only("projections", reference.projections),
}
SUPPORTS = {"triton": triton.supports}


def projections(
    x: jax.Array, weights: Sequence[jax.Array | Quantized], *, implementation: str = "auto"
) -> list[jax.Array]:
    """`x @ w` for each of `weights`.

    Args:
      x: [T, D].
      weights: each [D, n], in the dtype of `x` or `Quantized`; with one of these there is neither a
        backward pass nor `triton`.
      implementation: see `pallas_kernels.dispatch`; `triton` takes up to 256 tokens, and has no
        backward pass.

    Returns:
      For each, [T, n] in the dtype of `x`; sums are float32 at least.

    Raises:
      ValueError: shapes or dtypes that do not fit together, an unknown implementation or one that
        does not take this call.
    """
    weights = tuple(weights)
    plain = [w for w in weights if not isinstance(w, Quantized)]
    for w in weights:
        if isinstance(w, Quantized):
            w.check("projections")
    kinds = [w.kind if isinstance(w, Quantized) else w.dtype for w in weights]
    shapes = f"x {x.dtype} {x.shape}, weights " + ", ".join(
        f"{kind} {w.shape}" for kind, w in zip(kinds, weights, strict=True)
    )
    if x.ndim != 2 or any(w.ndim != 2 or w.shape[0] != x.shape[1] for w in weights):
        raise ValueError(f"projections: want [T, D] and [D, n] each; got {shapes}")
    if any(w.dtype != x.dtype for w in plain) or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"projections: want one floating dtype; got {shapes}")
    table = IMPLEMENTATIONS if len(plain) == len(weights) else QUANTIZED
    found = dispatch.call("projections", table, SUPPORTS, implementation, x, weights)
    return list(found)
