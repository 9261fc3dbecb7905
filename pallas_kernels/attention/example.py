"""A small call of `attention`: two packed rows with padding, grouped heads, an odd length."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.draws import Draws
from pallas_kernels.shapes import ZAYA1_8B, Call, Form


def draw(key: jax.Array | int, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """`(args, kwargs)` of a call: B=2, S=37, H=4, K=2, C=16, two documents and padding a row."""
    B, S, H, K, C = 2, 37, 4, 2, 16
    draws = Draws(key, dtype)
    q = draws.normal((B, S, H, C))
    k = draws.normal((B, S, K, C))
    v = draws.normal((B, S, K, C))
    ends = np.array([[13, 37], [20, 31]])  # the second row ends in six positions of padding
    position = np.arange(S)
    segment_ids = 1 + np.sum(position[None, :, None] >= ends[:, None, :1], axis=-1)
    segment_ids = np.where(position < ends[:, 1:], segment_ids, 0)
    return (q, k, v, draws.array(segment_ids, jnp.int32)), {"window": 16}


def shapes_8b(form: Form) -> dict[str, Call]:
    """A layer's attention with segment ids, for packing or padding; each row one long document.

    Varied: in float32, in a window, with heads half as wide, with one and with three kv heads.
    """
    if form.decodes:
        return {}
    calls = {"": _call(form)}
    if form.varied:
        calls["float32"] = _call(form, jnp.float32)
        calls["window"] = _call(form, window=4096)
        calls["narrow"] = _call(form, channels=64)
        calls["one_head"] = _call(form, kv_heads=1)
        calls["three_heads"] = _call(form, kv_heads=3)
    return calls


def _call(
    form: Form,
    dtype: Any = jnp.bfloat16,
    kv_heads: int = ZAYA1_8B.kv_heads,
    channels: int = ZAYA1_8B.channels,
    **options: Any,
) -> Call:
    B, S, T = form.rows, form.queries, form.keys
    heads = kv_heads * ZAYA1_8B.group
    q = jax.ShapeDtypeStruct((B, S, heads, channels), dtype)
    k = v = jax.ShapeDtypeStruct((B, T, kv_heads, channels), dtype)
    segment_ids = np.ones((B, T), np.int32)
    # The last shard of a row has the most to do.
    return Call((q, k, v, segment_ids), {"query_offset": T - S, **options})
