"""The experts: tokens through the SwiGLU networks that the router chose for them.

`experts` is exact for any distribution of tokens (nothing is dropped, no expert has a limit), and
an index outside the table of experts (the skip class, padding) contributes zero.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.grouped_matmul import quantized_xla, reference, triton, xla
from pallas_kernels.quantized import Quantized, forward_only

__all__ = ["IMPLEMENTATIONS", "SUPPORTS", "Quantized", "experts"]

IMPLEMENTATIONS: dict[str, Callable] = {
    "triton": triton.experts,
    "xla": xla.experts,
    "reference": reference.experts,
}
# The same experts with quantized weights; forward only.
QUANTIZED: dict[str, Callable] = {
    "triton": forward_only("experts", triton.experts),
    "xla": forward_only("experts", quantized_xla.experts),
    "reference": forward_only("experts", reference.experts),
}
SUPPORTS = {"triton": triton.supports}


def experts(
    x: jax.Array,
    index: jax.Array,
    weight: jax.Array,
    gate_up: jax.Array | Quantized,
    down: jax.Array | Quantized,
    *,
    implementation: str = "auto",
) -> jax.Array:
    """`y[t] = sum_k weight[t, k] * (silu(x[t] @ gate) * (x[t] @ up)) @ down`, experts index[t].

    Each matmul rounds to the dtype of `x`, and the router's probability multiplies the output of
    the down-projection, as in transformers' `ZayaExperts`. Differentiable in `x`, `weight`,
    `gate_up` and `down`.

    Args:
      x: [T, D] tokens.
      index: [T, k] integer, the experts of a token; outside 0..E-1 contributes zero.
      weight: [T, k] floating, what multiplies each expert's output.
      gate_up: [E, D, 2F] in the dtype of `x`, or `Quantized`; the gate's columns come first.
      down: [E, F, D] in the dtype of `x`, or `Quantized` where gate_up is. With quantized weights
        there is no backward pass.
      implementation: see `pallas_kernels.dispatch`.

    Returns:
      [T, D] in the dtype of `x`.

    Raises:
      ValueError: shapes or dtypes that do not fit together, an unknown implementation or one that
        does not take this call.
    """
    _check(x, index, weight, gate_up, down)
    args = x, index, weight, gate_up, down
    table = QUANTIZED if isinstance(gate_up, Quantized) else IMPLEMENTATIONS
    return dispatch.call("grouped_matmul", table, SUPPORTS, implementation, *args)


def _check(x, index, weight, gate_up, down) -> None:
    if isinstance(gate_up, Quantized) or isinstance(down, Quantized):
        for name, given in (("gate_up", gate_up), ("down", down)):
            if not isinstance(given, Quantized):
                raise ValueError(
                    f"experts: {name} is a plain {given.dtype} array and the other is quantized; "
                    "quantize both"
                )
            given.check(f"experts: {name}")
    shapes = (
        f"x {x.shape}, index {index.shape}, weight {weight.shape}, "
        f"gate_up {gate_up.shape}, down {down.shape}"
    )
    if x.ndim != 2 or index.ndim != 2 or gate_up.ndim != 3 or down.ndim != 3:
        raise ValueError(f"experts: want [T,D], [T,k], [T,k], [E,D,2F], [E,F,D]; got {shapes}")
    experts_, hidden, double = gate_up.shape
    if not (
        index.shape == weight.shape
        and index.shape[0] == x.shape[0]
        and x.shape[1] == hidden
        and double % 2 == 0
        and down.shape == (experts_, double // 2, hidden)
    ):
        raise ValueError(
            f"experts: sizes T, D, E, F of [T,D], [T,k], [T,k], [E,D,2F], [E,F,D] differ: {shapes}"
        )
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(f"experts: index must be integer, got {index.dtype}")
    if isinstance(gate_up, Quantized):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"experts: x must be floating, got {x.dtype}")
        return
    if not x.dtype == gate_up.dtype == down.dtype:
        raise ValueError(
            f"experts: x {x.dtype}, gate_up {gate_up.dtype} and down {down.dtype} must share a "
            "dtype; cast the weights where the numerics policy is applied"
        )
