"""Log-probabilities of target tokens, without the logits ever existing all at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.cross_entropy import reference, triton, xla

IMPLEMENTATIONS: dict[str, Callable] = {
    "triton": triton.cross_entropy,
    "xla": xla.cross_entropy,
    "reference": reference.cross_entropy,
}
SUPPORTS = {"triton": triton.supports}


@overload
def cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    chunk: int | None = None,
    return_lse: Literal[False] = False,
    implementation: str = "auto",
) -> jax.Array: ...
@overload
def cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    chunk: int | None = None,
    return_lse: Literal[True],
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array]: ...
def cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    chunk: int | None = None,
    return_lse: bool = False,
    implementation: str = "auto",
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """`log_softmax(hidden @ head.T)[target]` of each token; differentiable in hidden and head.

    A training loss is `-(logprob * weight).sum() / weight.sum()`; a z-loss (Chowdhery et al., PaLM,
    2022, section 5) adds the weighted mean of `lse ** 2` times a small number. Targets outside
    0..V-1 are not checked: clip them and give them weight 0.

    Args:
      hidden: [T, D].
      head: [V, D], the tied embedding.
      targets: [T] integer.
      chunk: tokens whose logits may exist at one time; None chooses. `triton` needs no such bound.
      return_lse: also return the log-sum-exp of the logits, [T], differentiable.
      implementation: see `pallas_kernels.dispatch`.

    Returns:
      [T] in the wider of float32 and the dtype of the inputs; with `return_lse` two of them.

    Raises:
      ValueError: shapes that do not fit together, a chunk below 1, an unknown implementation or one
        that does not take this call.
    """
    shapes = f"hidden {hidden.shape}, head {head.shape}, targets {targets.shape}"
    if hidden.ndim != 2 or head.ndim != 2 or targets.ndim != 1:
        raise ValueError(f"cross_entropy: want [T,D], [V,D], [T]; got {shapes}")
    if hidden.shape[0] != targets.shape[0] or hidden.shape[1] != head.shape[1]:
        raise ValueError(f"cross_entropy: sizes T, D of [T,D], [V,D], [T] differ: {shapes}")
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(f"cross_entropy: targets must be integer, got {targets.dtype}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"cross_entropy: chunk must be at least 1, got {chunk}")
    return dispatch.call(
        "cross_entropy",
        IMPLEMENTATIONS,
        SUPPORTS,
        implementation,
        hidden,
        head,
        targets,
        chunk=chunk,
        return_lse=return_lse,
    )
