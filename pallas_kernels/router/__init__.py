"""The ZAYA1 router (report eq 1 to 5): depth averaging, RMSNorm, MLP, softmax, biased top-k."""

from __future__ import annotations

from collections.abc import Callable

import jax

from pallas_kernels import dispatch
from pallas_kernels.checks import match
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
      weights: in any floating dtype; see `Weights`.
      biases: [classes] balancing biases, float32 at least; they move the choice only (eq 4).
      live: [T] bool; None means all.
      softmax_dtype: in which logits become probabilities.

    Raises:
      ValueError: shapes that do not fit each other, an unknown implementation or one that does not
        take this call.
    """
    _check(x, state, weights, biases, live)
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


def _check(x, state, weights: Weights, biases, live) -> None:
    """Kernels take T, D, R and the classes from some arrays, and trust the others to fit."""
    if x.ndim != 2 or biases.ndim != 1:
        raise ValueError(f"router: want x [T, D], biases [classes]; got {x.shape}, {biases.shape}")
    (T, D), classes = x.shape, biases.shape[0]
    if weights.down is None:
        R = D
    else:
        R = weights.down.shape[-1]
        match("router", {"state": (state, (T, R)), "weights.down": (weights.down, (D, R))})
        for name in ("down_bias", "norm"):
            if getattr(weights, name) is None:
                raise ValueError(f"router: weights.down wants weights.{name} [{R}]; got None")
    layers = [("fc1", weights.fc1, weights.fc1_bias), ("fc2", weights.fc2, weights.fc2_bias)]
    layers += [(f"deeper[{i}]", *layer) for i, layer in enumerate(weights.deeper or ())]
    for name, matrix, bias in layers:
        if (matrix is None) != (bias is None):
            raise ValueError(f"router: weights.{name} has a bias, or both are None; one of them is")
        wanted = {f"weights.{name}": (matrix, (R, R)), f"the bias of weights.{name}": (bias, (R,))}
        match("router", wanted)
    for name in ("down_bias", "state_scale", "norm"):
        match("router", {f"weights.{name}": (getattr(weights, name), (R,))})
    match("router", {"weights.out": (weights.out, (R, classes)), "live": (live, (T,))})
