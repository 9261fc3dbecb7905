"""The whole mix in one launch for AMD and NVIDIA GPUs, and its backward pass in three.

The launch that decodes also writes the token's key, its value and the state behind it into the
cache, in place.

A program takes a tile of tokens and one kv head with its group of query heads. Every latent of the
tile is read from memory once, and so is its mean over the group, which never leaves the registers;
the convolutions' weights (640 KiB in ZAYA1-8B) stay in the second-level cache. `backward.py` tells
the equations of the gradients.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import tuned
from pallas_kernels.cca_mix import backward, xla
from pallas_kernels.cca_mix.tiles import (
    MIN_TOKENS,
    Static,
    Tile,
    convolve,
    rotated,
    row_sums,
)
from pallas_kernels.cca_mix.types import Cache, Place, State, Weights

DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))


def supports(
    q, k, v_current, v_delayed, weights, cos, sin, positions, state=None,
    *, norm_dtype, qk_mean=True, value_shift=True,
) -> str | None:  # fmt: skip
    """What a call has that the kernel lacks; None if nothing."""
    for name, there in (
        ("both convolutions", weights.depthwise is not None and weights.grouped is not None),
        ("the q-k mean", qk_mean),
        ("the value shift", value_shift),
    ):
        if not there:
            return f"a mix with {name}, not without"
    arrays = (q, k, v_current, v_delayed, *weights, cos, sin, *(state or ()))
    for dtype in (*(x.dtype for x in arrays), norm_dtype):
        if jnp.dtype(dtype) not in DTYPES:
            return f"dtypes float32 and bfloat16, not {jnp.dtype(dtype)}"
    C, turned = weights.grouped.shape[-1], 2 * cos.shape[-1]
    if C < MIN_TOKENS or C & (C - 1):
        return f"heads of 16, 32, 64, 128, ... channels, not {C}"
    if turned and (turned > C or turned < 2 * MIN_TOKENS or turned & (turned - 1)):
        return f"0, 32, 64, ... rotated channels up to {C}, not {turned}"
    return None


def supports_decode(
    q, k, v_current, v_delayed, weights, cos, sin, positions, cache, place, **parts
) -> str | None:
    """What a call of `cca_mix_decode` has that the kernel lacks; None if nothing."""
    lack = supports(q, k, v_current, v_delayed, weights, cos, sin, positions, cache.state, **parts)
    dtypes = {x.dtype.name for x in jax.tree.leaves(cache)}
    if lack is None and dtypes != {q.dtype.name}:
        return f"a cache in the latents' {q.dtype}, not {', '.join(sorted(dtypes))}"
    if lack is None and weights.past == 0:
        return "convolutions that read tokens before"
    return lack


def cca_mix(
    q, k, v_current, v_delayed, weights, cos, sin, positions, state=None,
    *, norm_dtype, qk_mean=True, value_shift=True,
):  # fmt: skip
    """See the package."""
    del qk_mean, value_shift  # `supports` sees to them
    static, weights, state = _prepared(q, k, weights, cos, state, norm_dtype)
    arrays = (q, k, v_current, v_delayed)
    return _mix(static, arrays, weights, cos, sin, positions.astype(jnp.int32), state)


def cca_mix_decode(
    q, k, v_current, v_delayed, weights, cos, sin, positions, cache, place,
    *, norm_dtype, qk_mean=True, value_shift=True,
):  # fmt: skip
    """See the package."""
    del qk_mean, value_shift  # `supports_decode` sees to them
    static, weights, state = _prepared(q, k, weights, cos, cache.state, norm_dtype)
    arrays = (q, k, v_current, v_delayed)
    places = positions.astype(jnp.int32)
    q, keys, values, latents, delayed = _launch(
        static, arrays, weights, cos, sin, places, state, cache, place
    )
    return q, Cache(keys, values, State(latents, delayed))


def _prepared(q, k, weights: Weights, cos, state: State | None, norm_dtype):
    static, temperature = Static.of(q, k, weights, cos, state, norm_dtype), weights.temperature
    weights = jax.tree.map(lambda w: w.astype(q.dtype), weights)._replace(temperature=temperature)
    if state is not None:
        state = jax.tree.map(lambda x: x.astype(q.dtype), state)
    if state is not None and static.past == 0:  # no latent is read, but no operand may be empty
        state = state._replace(qk=jnp.pad(state.qk, ((0, 0), (0, 1), (0, 0))))
    return static, weights, state


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(static: Static, arrays, weights: Weights, cos, sin, positions, state: State | None):
    return _launch(static, arrays, weights, cos, sin, positions, state)


def _launch(
    static: Static,
    arrays,
    weights: Weights,
    cos,
    sin,
    positions,
    state: State | None,
    cache: Cache | None = None,
    place: Place | None = None,
):
    """q, k and v; with a cache, for rows of one token, q and the cache's arrays behind it."""
    settings = tuned.settings("cca_mix", "decode" if static.S == 1 else "forward", static.dtype)
    tokens, C, H = static.tokens(settings), static.C, static.H

    def cca_mix_forward(q, k, current, delayed, *refs):
        *weight_refs, cos_ref, sin_ref, positions_ref = refs[:8]
        state_refs = refs[8:10] if static.with_state else (None, None)
        out_q, out_k, out_v, *new_state = refs[8 + len(given) :]
        temperature = weight_refs[4]
        group = pl.program_id(1)
        tile = Tile.of(static, pl.program_id(0) * tokens, tokens, positions_ref)
        put = tile.store
        if place is not None:
            slot, live = (tile.load_vector(ref) for ref in refs[12:14])
            to = tile.row
            if place.pages is not None:
                read, to = (tile.load_vector(ref) for ref in refs[14:16])
                tile = tile.of_rows(read)
            put = functools.partial(tile.put, static, to, slot)
        dtype = static.norm_dtype
        cosine = tile.load(cos_ref, 0, static.half).astype(dtype)
        sine = tile.load(sin_ref, 0, static.half).astype(dtype)

        def convolved(ref, column, head):
            parts = convolve(
                static, tile, weight_refs, head, settings["chunk"], ref, column, state_refs[0]
            )
            return [x.astype(dtype) for x in parts]

        def store_normed(store, ref, column, parts, scale):
            square = row_sums([x * x for x in parts])
            factor = scale * jax.lax.rsqrt(jnp.maximum(square, static.least_square))
            parts = [x * factor.astype(dtype) for x in parts]
            for (at, _), part in zip(static.parts, rotated(parts, cosine, sine), strict=True):
                store(ref, column + at, part)

        def query_head(g, totals):
            head = group * static.G + g
            mixed = convolved(q, head * C, head)
            # Latents are read a second time, in parts: the first-level cache has them.
            own = tile.load_parts(static, q, head * C, dtype)
            keys = tile.load_parts(static, k, group * C, dtype)
            means = [(a + b) * 0.5 for a, b in zip(own, keys, strict=True)]
            parts = [a + b for a, b in zip(mixed, means, strict=True)]
            store_normed(tile.store, out_q, head * C, parts, C**0.5)
            return tuple(a + b.astype(jnp.float32) for a, b in zip(totals, means, strict=True))

        start = tuple(jnp.zeros((tokens, width), jnp.float32) for _, width in static.parts)
        totals = jax.lax.fori_loop(0, static.G, query_head, start)
        means = [(total / static.G).astype(dtype) for total in totals]
        mixed = convolved(k, group * C, H + group)
        parts = [a + b for a, b in zip(mixed, means, strict=True)]
        scale = C**0.5 * temperature[group].astype(jnp.float32)
        store_normed(put, out_k, group * C, parts, scale)

        half = C // 2
        put(out_v, group * half, tile.load(current, group * half, half))
        values = tile.delayed_value(static, delayed, group * half, state_refs[1])
        put(out_v, (static.K + group) * half, values)

        if place is not None:
            if not static.interpret:
                # The new state takes the old one's place, which all threads have read by now.
                plgpu.debug_barrier()
            for i in range(static.G):
                head = group * static.G + i
                tile.push(static, new_state[0], state_refs[0], to, q, head * C, head * C, live)
            tile.push(static, new_state[0], state_refs[0], to, k, group * C, (H + group) * C, live)
            tile.push_value(static, new_state[1], state_refs[1], to, delayed, group * half, live)

    B, dtype = static.T // static.S, static.dtype
    flat = [x.reshape(static.T, -1) for x in (*arrays, cos, sin)]
    shapes = [(static.T, heads * C) for heads in (H, static.K, static.K)]
    given: tuple[jax.Array, ...] = state or ()
    in_place = {}
    if cache is not None:
        # Operands 12 to 15 are the state, the keys and the values; results 3, 4, 1 and 2.
        given = (*given, cache.keys, cache.values, *jax.tree.leaves(place))
        shapes = [shapes[0], *(x.shape for x in (cache.keys, cache.values, *(state or ())))]
        in_place = {12: 3, 13: 4, 14: 1, 15: 2}
    outs = static.call(
        cca_mix_forward,
        settings,
        (pl.cdiv(static.T, tokens), static.K),
        [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes],
        in_place,
        static.tap_tile(settings["chunk"]),
    )(*flat[:4], *weights, *flat[4:], positions.reshape(-1), *given)
    heads = outs if cache is None else outs[:1]
    return *(x.reshape(B, static.S, -1, C) for x in heads), *outs[len(heads) :]


def _forward(static, *args):
    return _mix(static, *args), args


def _backward(static: Static, kept, cotangents):
    arrays, weights, cos, sin, positions, state = kept
    d_arrays, d_weights = backward.gradients(
        static, arrays, weights, cos, sin, positions, state, cotangents
    )
    d_state = None
    if state is not None:
        # Only the first tokens look back beyond the row.
        n = min(static.S, max(static.past, 1))
        q, k, current, delayed = (x[:, :n] for x in arrays)
        cos_n, sin_n, at = (x[:, :n] for x in (cos, sin, positions))

        def start(state):
            args = (q, k, current, delayed, weights, cos_n, sin_n, at, state)
            return xla.cca_mix(*args, norm_dtype=static.norm_dtype)

        first = tuple(x[:, :n] for x in cotangents)
        (d_state,) = jax.vjp(start, state)[1](first)
    # RoPE's tables are functions of positions: nothing learns through them.
    return d_arrays, d_weights, jnp.zeros_like(cos), jnp.zeros_like(sin), None, d_state


_mix.defvjp(_forward, _backward)
