"""Causal grouped-query self-attention, optionally over packed segments and a sliding window."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.attention import reference, xla

IMPLEMENTATIONS: dict[str, Callable] = {"xla": xla.attention, "reference": reference.attention}


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    window: int | None = None,
    scale: float | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Causal softmax attention of every position of a row to those before it.

    Query i attends key j if and only if j <= i, both lie in the same segment, and, with a window,
    i - j < window. So every query attends at least itself, those of padding included.

    Args:
      q: queries [B, S, H, C], any floating dtype.
      k: keys [B, S, K, C], where K divides H; query head h reads kv head h // (H // K).
      v: values [B, S, K, C].
      segment_ids: int [B, S], the document that each position of a packed row belongs to;
        None for one segment a row.
      window: number of positions a query sees, itself included; None for all before it.
      scale: factor on the scores before the softmax; None for C**-0.5.
      implementation: `auto`, or a key of `IMPLEMENTATIONS`.

    Returns:
      [B, S, H, C] in q's dtype. The softmax runs in float32 (float64 for float64 inputs), and the
      probabilities are cast to v's dtype for their product with the values.

    Raises:
      ValueError: shapes that do not fit each other, a window below 1, or an unknown implementation.
    """
    _validate(q, k, v, segment_ids, window)
    run = dispatch.select("attention", IMPLEMENTATIONS, implementation)
    return run(q, k, v, segment_ids, window=window, scale=scale)


def _validate(q, k, v, segment_ids, window) -> None:
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if q.ndim != 4 or k.ndim != 4:
        raise ValueError(f"attention: q, k and v must be [B, S, heads, C]; got {shapes}")
    if k.shape != v.shape:
        raise ValueError(f"attention: k and v must have one shape; got {shapes}")
    if q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"attention: q, k and v must agree in B, S and C; got {shapes}")
    if min(q.shape) == 0 or k.shape[2] == 0:
        raise ValueError(f"attention: no axis may be empty; got {shapes}")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: q's heads must be a multiple of k's; got {shapes}")
    if segment_ids is not None:
        if segment_ids.shape != q.shape[:2]:
            raise ValueError(
                f"attention: segment_ids must be [B, S] = {q.shape[:2]}; got {segment_ids.shape}"
            )
        if not jnp.issubdtype(segment_ids.dtype, jnp.integer):
            raise ValueError(f"attention: segment_ids must be integers; got {segment_ids.dtype}")
    if window is not None and window < 1:
        raise ValueError(f"attention: window must be at least 1; got {window}")
