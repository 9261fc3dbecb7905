"""Causal grouped-query self-attention, optionally over packed segments and a sliding window."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.attention import reference, triton, xla

IMPLEMENTATIONS: dict[str, Callable] = {
    "triton": triton.attention,
    "xla": xla.attention,
    "reference": reference.attention,
}
SUPPORTS = {"triton": triton.supports}


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    query_offset: jax.Array | int = 0,
    window: int | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    implementation: str = "auto",
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Causal softmax attention of every position of a row to those before it.

    The query at index i stands at position i + query_offset. It attends the key at position j if
    and only if j is not behind it, both lie in the same segment, and, with a window, it is less
    than `window` positions ahead. So every query attends at least itself, padding's included.

    Args:
      q: queries [B, S, H, C], any floating dtype.
      k: keys [B, T, K, C], where K divides H; query head h reads kv head h // (H // K). T is S,
        or more where the queries are a part of the row: a context-parallel shard attends the keys
        gathered from all.
      v: values [B, T, K, C].
      segment_ids: int [B, T], the document that each position of a packed row belongs to, or 1
        behind left padding and 0 in it; None for one segment a row.
      query_offset: position of the first query, at most T - S; an int, or int32 [] if it is data.
      window: number of positions a query sees, itself included; None for all before it.
      scale: factor on the scores before the softmax; None for C**-0.5.
      return_lse: whether to return the log-sum-exp too, from which the results of several calls
        over parts of the keys can be joined. Gradients pass through both.
      implementation: `auto`, or a key of `IMPLEMENTATIONS`.

    Returns:
      [B, S, H, C] in q's dtype; with `return_lse` also log(sum(exp(scores))) [B, S, H]. The softmax
      runs in float32 (float64 for float64 inputs), and the probabilities are cast to v's dtype for
      their product with the values.

    Raises:
      ValueError: shapes that do not fit each other, a window below 1, an unknown implementation or
        one that does not take this call.
    """
    _validate(q, k, v, segment_ids, query_offset, window)
    return dispatch.call(
        "attention",
        IMPLEMENTATIONS,
        SUPPORTS,
        implementation,
        q,
        k,
        v,
        segment_ids,
        query_offset=query_offset,
        window=window,
        scale=scale,
        return_lse=return_lse,
    )


def _validate(q, k, v, segment_ids, query_offset, window) -> None:
    shapes = f"q {q.shape}, k {k.shape}, v {v.shape}"
    if q.ndim != 4 or k.ndim != 4:
        raise ValueError(f"attention: q, k and v must be [B, S, heads, C]; got {shapes}")
    if k.shape != v.shape:
        raise ValueError(f"attention: k and v must have one shape; got {shapes}")
    if q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise ValueError(f"attention: q, k and v must agree in B and C; got {shapes}")
    if min(q.shape) == 0 or k.shape[2] == 0:
        raise ValueError(f"attention: no axis may be empty; got {shapes}")
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"attention: q's heads must be a multiple of k's; got {shapes}")
    # An offset that is data can only be taken as it comes.
    last = k.shape[1] - q.shape[1]
    offset = query_offset if isinstance(query_offset, int) else max(last, 0)
    if not 0 <= offset <= last:
        raise ValueError(
            f"attention: queries must be positions of the keys; got {shapes}, "
            f"query_offset {query_offset}"
        )
    if segment_ids is not None:
        if segment_ids.shape != k.shape[:2]:
            raise ValueError(
                f"attention: segment_ids must be [B, T] = {k.shape[:2]}; got {segment_ids.shape}"
            )
        if not jnp.issubdtype(segment_ids.dtype, jnp.integer):
            raise ValueError(f"attention: segment_ids must be integers; got {segment_ids.dtype}")
    if window is not None and window < 1:
        raise ValueError(f"attention: window must be at least 1; got {window}")
