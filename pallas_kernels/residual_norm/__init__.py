"""Residual scaling of both streams, sum and RMSNorm in one pass (report eq 6)."""

from __future__ import annotations

from collections.abc import Callable

import jax

from pallas_kernels import dispatch
from pallas_kernels.residual_norm import reference, triton
from pallas_kernels.residual_norm.reference import rms_norm

__all__ = ["IMPLEMENTATIONS", "SUPPORTS", "residual_norm", "rms_norm"]

# Elementwise work and one row reduction: XLA fuses the definition as it is written.
IMPLEMENTATIONS: dict[str, Callable] = {
    "triton": triton.residual_norm,
    "xla": reference.residual_norm,
    "reference": reference.residual_norm,
}
SUPPORTS = {"triton": triton.supports}


def residual_norm(
    mixer: jax.Array,
    stream: jax.Array,
    scales: tuple[jax.Array, jax.Array, jax.Array, jax.Array] | None,
    norm_weight: jax.Array | None,
    *,
    eps: float,
    merge_dtype,
    stream_dtype,
    norm_dtype,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array | None]:
    """stream' = (mixer + b_h) * s_h + (stream + b_r) * s_r, and rms_norm(stream') * norm_weight.

    Args:
      mixer: [..., D] output of attention or experts, in the activation dtype.
      stream: [..., D] residual stream.
      scales: (s_h, b_h, s_r, b_r), each [D]; None adds the two streams as they are.
      norm_weight: [D]; None skips the norm.
      eps: of the norm.
      merge_dtype: in which the mixer's side is scaled.
      stream_dtype: of the returned stream.
      norm_dtype: in which the norm reads the stream; statistics are float32 at least.

    Returns:
      The stream [..., D] in `stream_dtype`; its norm [..., D] in the mixer's dtype, or None.

    Raises:
      ValueError: shapes that do not fit each other.
    """
    if mixer.shape != stream.shape:
        raise ValueError(
            f"residual_norm: mixer and stream must be of one shape; got {mixer.shape} and "
            f"{stream.shape}"
        )
    D = mixer.shape[-1]
    vectors = [*(("scales", scale) for scale in scales or ()), ("norm_weight", norm_weight)]
    for name, vector in vectors:
        if vector is not None and vector.shape != (D,):
            raise ValueError(f"residual_norm: {name} must be [{D}]; got {vector.shape}")
    return dispatch.call(
        "residual_norm",
        IMPLEMENTATIONS,
        SUPPORTS,
        implementation,
        mixer,
        stream,
        scales,
        norm_weight,
        eps=eps,
        merge_dtype=merge_dtype,
        stream_dtype=stream_dtype,
        norm_dtype=norm_dtype,
    )
