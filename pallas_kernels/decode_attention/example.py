"""A small call of `decode_attention`: a long, a left-padded and an idle row."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.draws import Draws
from pallas_kernels.shapes import ZAYA1_8B, Call, Form


def draw(key: jax.Array | int, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """`(args, kwargs)` of a call: B=3, H=4, K=2, C=16, a cache of T=40 positions."""
    B, H, K, T, C = 3, 4, 2, 40, 16
    draws = Draws(key, dtype)
    q = draws.normal((B, H, C))
    k_cache = draws.normal((B, K, T, C))
    v_cache = draws.normal((B, K, T, C))
    lengths = draws.array(np.array([37, 12, 0]), jnp.int32)
    start = draws.array(np.array([0, 5, 0]), jnp.int32)
    return (q, k_cache, v_cache, lengths), {"window": 24, "start": start}


def shapes_8b(form: Form) -> dict[str, Call]:
    """A layer's attention to caches of as many positions as are in use, whole and in pages.

    Varied: in float32, caches in int8 and fp8, in a window, with heads half as wide, with one and
    with three kv heads.
    """
    if not form.decodes:
        return {}
    calls = {"": _call(form), "paged": _call(form, paged=True)}
    if form.varied:
        calls["float32"] = _call(form, jnp.float32)
        calls["int8"] = _call(form, cache=jnp.int8, paged=True)
        calls["fp8"] = _call(form, cache=jnp.float8_e4m3fn, paged=True)
        calls["window"] = _call(form, paged=True, window=4096)
        calls["narrow"] = _call(form, channels=64)
        calls["one_head"] = _call(form, kv_heads=1)
        calls["three_heads"] = _call(form, kv_heads=3)
    return calls


def _call(
    form: Form,
    dtype: Any = jnp.bfloat16,
    kv_heads: int = ZAYA1_8B.kv_heads,
    channels: int = ZAYA1_8B.channels,
    cache: Any = None,
    paged: bool = False,
    **options: Any,
) -> Call:
    B, T, page = form.rows, form.keys, 256
    heads = kv_heads * ZAYA1_8B.group
    rows, room = (B * T // page, page) if paged else (B, T)
    slots = jax.ShapeDtypeStruct((rows, kv_heads, room, channels), cache or dtype)
    if paged:
        options["pages"] = np.arange(rows, dtype=np.int32).reshape(B, -1)
    if cache is not None:
        options["scales"] = (jax.ShapeDtypeStruct((rows, kv_heads, room), jnp.float32),) * 2
    q = jax.ShapeDtypeStruct((B, heads, channels), dtype)
    return Call((q, slots, slots, np.full((B,), T, np.int32)), options)
