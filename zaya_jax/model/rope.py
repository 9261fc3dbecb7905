"""Rotary position embedding on the first channels of each head (RoFormer, arXiv 2104.09864)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from zaya_jax.model.numerics import Numerics


def rope_table(
    positions: jax.Array, *, theta: float, channels: int, numerics: Numerics
) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every angle; angles are float32 at least.

    Args:
      positions: [...] int32, counted from the start of the document.
      theta: base of the frequencies.
      channels: rotated channels of a head; even.

    Returns:
      cos, sin: [..., channels / 2] in the policy's `rope` dtype.
    """
    wide = jnp.promote_types(numerics.activation_dtype, jnp.float32)
    exponents = jnp.arange(0, channels, 2, dtype=wide) / channels
    angles = positions[..., None].astype(wide) * (1.0 / theta**exponents)
    dtype = numerics.dtype("rope")
    return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)
