"""Attention of one new token per row to a cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.decode_attention import reference, triton, xla

IMPLEMENTATIONS: dict[str, Callable] = {
    "triton": triton.decode_attention,
    "xla": xla.decode_attention,
    "reference": reference.decode_attention,
}
SUPPORTS = {"triton": triton.supports}


def decode_attention(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    lengths: jax.Array,
    *,
    window: int | None = None,
    scale: float | None = None,
    start: jax.Array | None = None,
    pages: jax.Array | None = None,
    scales: tuple[jax.Array, jax.Array] | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Softmax attention of each row's newest token to the row's cache.

    The query of row b stands at position lengths[b] - 1 and its own key is already in the cache.
    It attends the positions p with start[b] <= p < lengths[b] and, with a window,
    lengths[b] - 1 - p < window. A row with nothing to attend (lengths 0: an idle row) gives zeros.

    Args:
      q: queries [B, H, C], any floating dtype.
      k_cache: keys [B, K, T, C], where K divides H and T is the capacity; query head h reads kv
        head h // (H // K). What lies outside of the attended positions must be finite.
      v_cache: values [B, K, T, C].
      lengths: int [B], positions in use of each row, 0 to T.
      window: number of positions a query sees, itself included; None for all.
      scale: factor on the scores before the softmax; None for C**-0.5.
      start: int [B], first position in use (left padding); None for 0.
      pages: int32 [B, N], for caches [P, K, T, C] of P pages with room for T positions each, which
        rows share: position p of row b stands in page pages[b, p // T] at p % T. Pages of positions
        that are not attended are never read; theirs may be any number. None for a row of its own.
      scales: of keys and of values, float32 [B, K, T] or, with pages, [P, K, T]; the caches then
        hold int8 or fp8 numbers, each to be multiplied by the scale of its position and head.
      implementation: `auto`, or a key of `IMPLEMENTATIONS`.

    Returns:
      [B, H, C] in q's dtype. The softmax runs in float32 (float64 for float64 inputs), and the
      probabilities are cast to the cache's dtype for their product with the values.

    Raises:
      ValueError: shapes that do not fit each other, a window below 1, an unknown implementation or
        one that does not take this call.
    """
    _validate(q, k_cache, v_cache, lengths, start, window, pages, scales)
    return dispatch.call(
        "decode_attention",
        IMPLEMENTATIONS,
        SUPPORTS,
        implementation,
        q,
        k_cache,
        v_cache,
        lengths,
        window=window,
        scale=scale,
        start=start,
        pages=pages,
        scales=scales,
    )


def _validate(q, k_cache, v_cache, lengths, start, window, pages, scales) -> None:
    shapes = f"q {q.shape}, k_cache {k_cache.shape}, v_cache {v_cache.shape}"
    if q.ndim != 3 or k_cache.ndim != 4:
        raise ValueError(
            f"decode_attention: q must be [B, H, C], caches [B, K, T, C]; got {shapes}"
        )
    if k_cache.shape != v_cache.shape:
        raise ValueError(f"decode_attention: the caches must have one shape; got {shapes}")
    B_differs = pages is None and q.shape[0] != k_cache.shape[0]
    if B_differs or q.shape[2] != k_cache.shape[3]:
        raise ValueError(f"decode_attention: q and the caches must agree in B and C; got {shapes}")
    if pages is not None:
        fits = pages.ndim == 2 and len(pages) == len(q) and pages.shape[1] > 0
        if not fits or not jnp.issubdtype(pages.dtype, jnp.integer):
            raise ValueError(
                f"decode_attention: pages must be integers of shape [B, N], B = {len(q)}; "
                f"got {pages.dtype} {pages.shape}"
            )
    for name, value in zip(("keys", "values"), scales or (), strict=False):
        if value.shape != k_cache.shape[:3]:
            raise ValueError(
                f"decode_attention: scales of {name} must be {k_cache.shape[:3]}; got {value.shape}"
            )
    if min(q.shape) == 0 or min(k_cache.shape) == 0:
        raise ValueError(f"decode_attention: no axis may be empty; got {shapes}")
    if q.shape[1] % k_cache.shape[1]:
        raise ValueError(
            f"decode_attention: q's heads must be a multiple of the cache's; got {shapes}"
        )
    for name, value in (("lengths", lengths), ("start", start)):
        if value is None:
            continue
        if value.shape != q.shape[:1] or not jnp.issubdtype(value.dtype, jnp.integer):
            raise ValueError(
                f"decode_attention: {name} must be integers of shape [B] = {q.shape[:1]}; "
                f"got {value.dtype} {value.shape}"
            )
    if window is not None and window < 1:
        raise ValueError(f"decode_attention: window must be at least 1; got {window}")
