"""The ZAYA1 router (report eq 1 to 5): depth averaging, RMSNorm, MLP, softmax, biased top-k."""

from __future__ import annotations

from collections.abc import Callable

import jax

from pallas_kernels import dispatch
from pallas_kernels.router import reference, triton
from pallas_kernels.router.reference import choose
from pallas_kernels.router.types import Routing, Weights

__all__ = ["IMPLEMENTATIONS", "SUPPORTS", "Routing", "Weights", "choose", "router"]

# A chain of small matmuls and elementwise work: XLA compiles the definition as it is written.
IMPLEMENTATIONS: dict[str, Callable] = {
    "triton": triton.router,
    "xla": reference.router,
    "reference": reference.router,
}
SUPPORTS = {"triton": triton.supports}


def router(
    x: jax.Array,
    state: jax.Array | None,
    weights: Weights,
    biases: jax.Array,
    live: jax.Array | None = None,
    *,
    top_k: int,
    eps: float,
    norm_dtype,
    softmax_dtype,
    implementation: str = "auto",
) -> Routing:
    """Routes tokens; see `Weights` and `Routing`.

    Args:
      x: [T, D] normed hidden states in the activation dtype.
      state: [T, R] of the layer before, or None in the first layer.
      biases: [classes] balancing biases, float32 at least; they move the choice only (eq 4).
      live: [T] bool; None means all.
      softmax_dtype: in which logits become probabilities.

    Raises:
      ValueError: shapes that do not fit each other.
    """
    T, D = x.shape
    width = D if weights.down is None else weights.down.shape[-1]
    given = {
        "state": (None if weights.down is None else state, (T, width)),
        "weights.down": (weights.down, (D, width)),
        "weights.norm": (weights.norm, (width,)),
        "weights.out": (weights.out, (width, biases.shape[-1])),
        "live": (live, (T,)),
    }
    for name, (array, shape) in given.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"router: {name} must be {list(shape)}; got {array.shape}")
    return dispatch.call(
        "router",
        IMPLEMENTATIONS,
        SUPPORTS,
        implementation,
        x,
        state,
        weights,
        biases,
        live,
        top_k=top_k,
        eps=eps,
        norm_dtype=norm_dtype,
        softmax_dtype=softmax_dtype,
    )
