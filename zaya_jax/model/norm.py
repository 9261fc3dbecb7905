"""RMSNorm under the numerics policy."""

from __future__ import annotations

import jax

from pallas_kernels.residual_norm import rms_norm as _rms_norm
from zaya_jax.model.numerics import Numerics


def rms_norm(
    x: jax.Array, weight: jax.Array, eps: float, numerics: Numerics, read_by: str | None = None
) -> jax.Array:
    """x / rms(x) * weight over the last axis; statistics in float32 at least.

    With `norm` in the fp32 set everything up to the product with the weight is float32; else the
    input is first rounded to the activation dtype, as transformers does.

    Args:
      x: [..., D], any float dtype.
      weight: [D].
      read_by: the part of the policy that reads the result; None is the activation dtype.

    Returns:
      [..., D] in the dtype of its reader.
    """
    return _rms_norm(
        x,
        weight,
        eps=eps,
        norm_dtype=numerics.dtype("norm"),
        out_dtype=numerics.dtype(read_by) if read_by else numerics.activation_dtype,
    )
