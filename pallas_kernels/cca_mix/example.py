"""A small call of the op."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.cca_mix import triton
from pallas_kernels.cca_mix.types import Cache, Place, State, Weights
from pallas_kernels.draws import Draws
from pallas_kernels.shapes import ZAYA1_8B, Call, Form


def draw(
    key: jax.Array | int,
    dtype: jnp.dtype = jnp.float32,
    *,
    shape: tuple[int, int] = (2, 19),
    heads: tuple[int, int] = (4, 2),
    channels: int = 64,
    kernels: tuple[int, int] = (2, 2),
    with_state: bool = False,
) -> tuple[tuple, dict]:
    """Arguments for a batch of packed rows: B, S = shape; H, K = heads; K0, K1 = kernels."""
    (B, S), (H, K), (K0, K1) = shape, heads, kernels
    N = (H + K) * channels
    draws = Draws(key, dtype)
    weights = Weights(
        depthwise=draws.normal((K0, N)),
        depthwise_bias=draws.normal((N,)),
        grouped=draws.normal((K1, H + K, channels, channels), channels**-0.5),
        grouped_bias=draws.normal((N,)),
        temperature=draws.normal((K,), 0.3, mean=1),
    )
    starts = draws.numpy.random((B, S)) < 0.25
    starts[:, 0] = not with_state
    index = np.arange(S)
    last_start = np.maximum.accumulate(np.where(starts, index, -1), axis=1)
    # With a state, the first document began five tokens before the row.
    positions = index - np.where(last_start < 0, -5, last_start)
    angle = positions[..., None] * 0.3 ** np.arange(channels // 4)
    state = None
    if with_state:
        state = State(draws.normal((B, K0 + K1 - 2, N)), draws.normal((B, K * channels // 2)))
    args = (
        draws.normal((B, S, H * channels)),
        draws.normal((B, S, K * channels)),
        draws.normal((B, S, K * channels // 2)),
        draws.normal((B, S, K * channels // 2)),
        weights,
        draws.array(np.cos(angle)),
        draws.array(np.sin(angle)),
        draws.array(positions, jnp.int32),
        state,
    )
    return args, {"norm_dtype": jnp.promote_types(dtype, jnp.float32)}


def shapes_8b(form: Form) -> dict[str, Call]:
    """The mix of a layer, in bfloat16; decoding continues from a state and leaves the next one.

    Varied: in float32, with heads half as wide, with one and with three kv heads, in pages.
    """
    calls = {"": _call(form)}
    if form.varied:
        calls["float32"] = _call(form, dtype=jnp.float32)
        calls["narrow"] = _call(form, channels=64)
        calls["one_head"] = _call(form, kv_heads=1)
        calls["three_heads"] = _call(form, kv_heads=3)
    if form.varied and form.decodes:
        calls["paged"] = _call(form, paged=True)
    return calls


def _call(
    form: Form,
    dtype: Any = jnp.bfloat16,
    kv_heads: int = ZAYA1_8B.kv_heads,
    channels: int = ZAYA1_8B.channels,
    paged: bool = False,
) -> Call:
    B, S, (K0, K1) = form.rows, form.queries, ZAYA1_8B.conv_kernels
    K, C = kv_heads, channels
    H = K * ZAYA1_8B.group
    N, half = (H + K) * C, ZAYA1_8B.rotary * C // ZAYA1_8B.channels // 2

    def shaped(*shape: int, dtype: Any = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    weights = Weights(
        depthwise=shaped(K0, N),
        depthwise_bias=shaped(N),
        grouped=shaped(K1, H + K, C, C),
        grouped_bias=shaped(N),
        temperature=shaped(K),
    )
    args = (
        shaped(B, S, H * C),
        shaped(B, S, K * C),
        shaped(B, S, K * C // 2),
        shaped(B, S, K * C // 2),
        weights,
        shaped(B, S, half, dtype=jnp.float32),
        shaped(B, S, half, dtype=jnp.float32),
        # One document a row: a tap that a document does not reach is not loaded.
        np.broadcast_to(np.arange(form.keys - S, form.keys, dtype=np.int32), (B, S)),
    )
    options = {"norm_dtype": jnp.float32}
    if not form.decodes:
        return Call(args, options)
    # Of the cache one slot a row is written: a short one, so that its size says as much.
    P = 2 * B if paged else B
    slots = shaped(P, K, 1, C)
    cache = Cache(slots, slots, State(shaped(P, K0 + K1 - 2, N), shaped(P, K * C // 2)))
    pages = (np.arange(B, dtype=np.int32), np.arange(B, dtype=np.int32)) if paged else None
    place = Place(shaped(B, dtype=jnp.int32), shaped(B, dtype=jnp.bool_), pages)
    return Call((*args, cache, place), options, function=triton.cca_mix_decode)
