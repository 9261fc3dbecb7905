"""Gradients of the mix, in three launches.

With x_t the latents of a head (zero where a document does not reach back so far), taps
x_{t-j}, depthwise weights w_e, grouped G_d and z_t = y_t + mean_t what the L2 norm reads:

    y_t = g + sum_d u_{t,d} G_d,   u_{t,d} = b + sum_e w_e * x_{t-d-e}

1. `normalise`: the gradient of z, which is that of y, from the outputs' gradients: RoPE backwards,
   then the norm's projection. The forward pass is recomputed; nothing was kept of it.
2. `latents`: dx_t = sum_{d,e} w_e * (dy_{t+d+e} G_d^T) over the tokens that reach back to t, and
   the q-k mean's share. The two convolutions are joined into one of K0 + K1 - 1 taps.
3. `correlate`: A_j = sum_t x_{t-j}^T dy_t per head, from which all weights' gradients follow:

    dG_d = b (sum_t dy_t)^T + sum_e w_e A_{d+e}        dg = sum_t dy_t
    dw_e = sum_d rowsum(G_d * A_{d+e})                 db = sum_d G_d dg

Sums over tokens are shares of programs added by XLA: no atomics, the same bits every time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import tuned
from pallas_kernels.cca_mix.tiles import Static, Tile, convolve, rotated, row_sums
from pallas_kernels.cca_mix.types import State, Weights
from pallas_kernels.dots import dot


def gradients(
    static: Static,
    arrays,
    weights: Weights,
    cos,
    sin,
    positions,
    state: State | None,
    cotangents,
):
    """Gradients of (q, k, v_current, v_delayed) and of the weights."""
    flat = [x.reshape(static.T, -1) for x in arrays]
    tables = [cos.reshape(static.T, -1), sin.reshape(static.T, -1)]
    flat_cotangents = [x.reshape(static.T, -1) for x in cotangents]
    places = positions.reshape(-1)
    dy, d_current, d_delayed, d_temperature = _normalise(
        static, flat, weights, tables, places, state, flat_cotangents
    )
    dq, dk = _latents(static, dy, weights, places)
    correlations, total = _correlate(static, flat, dy, places, state)
    d_weights = _weights(static, weights, correlations, total, d_temperature)
    found = (dq, dk, d_current, d_delayed)
    return tuple(d.reshape(x.shape) for d, x in zip(found, arrays, strict=True)), d_weights


def _normalise(static: Static, flat, weights, tables, positions, state, cotangents):
    """dy [T, N], gradients of the values, and of the temperature [K]."""
    settings = tuned.settings("cca_mix", "normalise", static.dtype)
    tokens, C, H = static.tokens(settings), static.C, static.H
    programs = pl.cdiv(static.T, tokens)

    def cca_mix_normalise(q, k, *refs):
        *weight_refs, cos_ref, sin_ref, positions_ref, g_q, g_k, g_v = refs[:11]
        state_ref = refs[11] if static.with_state else None
        dy, d_current, d_delayed, d_temperature = refs[-4:]
        block, group = pl.program_id(0), pl.program_id(1)
        tile = Tile.of(static, block * tokens, tokens, positions_ref)
        dtype = static.norm_dtype
        cosine = tile.load(cos_ref, 0, static.half).astype(jnp.float32)
        sine = tile.load(sin_ref, 0, static.half).astype(jnp.float32)

        def normed(ref, column, head, means):
            """What the norm reads in parts, sqrt(C) / its length, and 1 / its length^2 (0 where
            that is clamped)."""
            mixed = convolve(
                static, tile, weight_refs, head, settings["chunk"], ref, column, state_ref
            )
            parts = [
                (a.astype(dtype) + b).astype(jnp.float32) for a, b in zip(mixed, means, strict=True)
            ]
            square = row_sums([x * x for x in parts])
            factor = C**0.5 * jax.lax.rsqrt(jnp.maximum(square, static.least_square))
            return parts, factor, jnp.where(square > static.least_square, factor * factor / C, 0)

        def through_norm(gradients, parts, factor, inverse_square):
            along = row_sums([g * x for g, x in zip(gradients, parts, strict=True)])
            along = along * inverse_square
            return [factor * (g - x * along) for g, x in zip(gradients, parts, strict=True)]

        def turned_back(ref, column):
            return rotated(tile.load_parts(static, ref, column, jnp.float32), cosine, -sine)

        def query_head(i, totals):
            head = group * static.G + i
            own = tile.load_parts(static, q, head * C, dtype)
            keys = tile.load_parts(static, k, group * C, dtype)
            means = [(a + b) * 0.5 for a, b in zip(own, keys, strict=True)]
            norm = normed(q, head * C, head, means)
            gradients = through_norm(turned_back(g_q, head * C), *norm)
            tile.store_parts(static, dy, head * C, gradients)
            return tuple(a + b.astype(jnp.float32) for a, b in zip(totals, means, strict=True))

        start = tuple(jnp.zeros((tokens, width), jnp.float32) for _, width in static.parts)
        totals = jax.lax.fori_loop(0, static.G, query_head, start)
        means = [(total / static.G).astype(dtype) for total in totals]
        parts, factor, inverse_square = normed(k, group * C, H + group, means)
        gradients = turned_back(g_k, group * C)
        along = row_sums([g * x for g, x in zip(gradients, parts, strict=True)]) * factor
        plgpu.store(d_temperature.at[block, group], jnp.sum(along))
        temperature = weight_refs[4][group].astype(jnp.float32)
        gradients = through_norm(gradients, parts, factor * temperature, inverse_square)
        tile.store_parts(static, dy, (H + group) * C, gradients)

        half = C // 2
        tile.store(d_current, group * half, tile.load(g_v, group * half, half))
        follows = _reaches(static, tile, positions_ref, 1)
        values = tile.load(g_v, (static.K + group) * half, half, follows, 1)
        tile.store(d_delayed, group * half, values)

    dtype, half = static.dtype, static.K * C // 2
    shapes = [
        jax.ShapeDtypeStruct((static.T, (H + static.K) * C), dtype),
        jax.ShapeDtypeStruct((static.T, half), dtype),
        jax.ShapeDtypeStruct((static.T, half), dtype),
        jax.ShapeDtypeStruct((programs, static.K), jnp.float32),
    ]
    before = () if state is None else (state.qk,)
    dy, d_current, d_delayed, shares = static.call(
        cca_mix_normalise,
        settings,
        (programs, static.K),
        shapes,
        tile=static.tap_tile(settings["chunk"]),
    )(*flat[:2], *weights, *tables, positions, *cotangents, *before)
    return dy, d_current, d_delayed, jnp.sum(shares, axis=0)


def _reaches(static: Static, tile: Tile, positions_ref, d: int) -> jax.Array:
    """[tokens] bool: the token d behind is in the same row and its document reaches back here."""
    exists = tile.inside & (tile.place + d < static.S)
    positions = plgpu.load(positions_ref.at[tile.index + d], mask=exists, other=-1)
    return exists & (positions >= d)


def _latents(static: Static, dy, weights: Weights, positions):
    """Gradients of q [T, H * C] and k [T, K * C]."""
    settings = tuned.settings("cca_mix", "latents", static.dtype)
    tokens, C, H = static.tokens(settings), static.C, static.H
    chunk = min(settings["chunk"], C)

    def cca_mix_latents(dy_ref, joined, positions_ref, dq, dk):
        group = pl.program_id(1)
        tile = Tile.of(static, pl.program_id(0) * tokens, tokens, positions_ref)
        reach = [tile.inside]
        reach += [_reaches(static, tile, positions_ref, j) for j in range(1, static.past + 1)]

        def through_convolutions(head):
            """dy of a head, and its way back through both convolutions."""

            def step(i, back):
                first = i * chunk
                for j, mask in enumerate(reach):
                    ahead = tile.load(dy_ref, head * C + first, chunk, mask, j)
                    back = back + dot(ahead, joined[j, head, pl.ds(first, chunk)])
                return back

            back = jax.lax.fori_loop(0, C // chunk, step, jnp.zeros((tokens, C), jnp.float32))
            return tile.load(dy_ref, head * C, C).astype(jnp.float32), back

        key = 0.5 / static.G * tile.load(dy_ref, (H + group) * C, C).astype(jnp.float32)

        def query_head(i, total):
            head = group * static.G + i
            own, back = through_convolutions(head)
            tile.store(dq, head * C, back + 0.5 * own + key)
            return total + own

        start = jnp.zeros((tokens, C), jnp.float32)
        total = jax.lax.fori_loop(0, static.G, query_head, start)
        own, back = through_convolutions(H + group)
        tile.store(dk, group * C, back + 0.5 * (own + total))

    return static.call(
        cca_mix_latents,
        settings,
        (pl.cdiv(static.T, tokens), static.K),
        [jax.ShapeDtypeStruct((static.T, n * C), static.dtype) for n in (H, static.K)],
        tile=max(tokens, C) * chunk,
    )(dy, _joined(static, weights), positions)


def _joined(static: Static, weights: Weights) -> jax.Array:
    """[past + 1, heads, C, C] (sum of w_e * G_d over d + e = j)^T: both convolutions as one."""
    scales, matrices = _by_distance(static, weights)
    taps = []
    for j in range(static.past + 1):
        pairs = [(j - d, d) for d in range(static.K1) if 0 <= j - d < static.K0]
        taps.append(sum(scales[e] * matrices[d] for e, d in pairs))
    return jnp.stack(taps).swapaxes(-1, -2).astype(static.dtype)


def _by_distance(static: Static, weights: Weights) -> tuple[jax.Array, jax.Array]:
    """w [K0, heads, C, 1] and G [K1, heads, C, C] in float32, by distance: stored oldest first."""
    assert weights.depthwise is not None and weights.grouped is not None  # `supports` sees to it
    heads = static.H + static.K
    scales = weights.depthwise[::-1].reshape(static.K0, heads, static.C, 1)
    return scales.astype(jnp.float32), weights.grouped[::-1].astype(jnp.float32)


def _correlate(static: Static, flat, dy, positions, state):
    """A [past + 1, heads, C, C] and the sum of dy [heads, C]."""
    settings = tuned.settings("cca_mix", "correlate", static.dtype)
    tokens, C, H, heads = static.tokens(settings), static.C, static.H, static.H + static.K
    steps = min(settings["steps"], pl.cdiv(static.T, tokens))
    programs, taps = pl.cdiv(static.T, tokens * steps), static.past + 1
    width = min(settings["columns"], C)

    def cca_mix_correlate(q, k, dy_ref, positions_ref, *refs):
        state_ref = refs[0] if static.with_state else None
        out, out_total = refs[-2:]
        block, head, part = pl.program_id(0), pl.program_id(1), pl.program_id(2)
        is_query = head < H

        def step(i, carry):
            first = (block * steps + i) * tokens
            tile = Tile.of(static, first, tokens, positions_ref)
            g = tile.load(dy_ref, head * C + part * width, width)
            queries = tile.only(is_query)
            keys = tile.only(~is_query)
            sums = []
            for j in range(taps):
                x = queries.tap(static, q, head * C, C, j, state_ref, head * C)
                x = x + keys.tap(static, k, (head - H) * C, C, j, state_ref, head * C)
                sums.append(carry[j] + dot(x, g, 0, 0))
            return (*sums, carry[-1] + jnp.sum(g.astype(jnp.float32), axis=0))

        zeros = (jnp.zeros((C, width), jnp.float32),) * taps
        start = (*zeros, jnp.zeros((width,), jnp.float32))
        *sums, total = jax.lax.fori_loop(0, steps, step, start)
        columns = pl.ds(part * width, width)
        for j, value in enumerate(sums):
            plgpu.store(out.at[block, head, pl.ds(j, 1), :, columns], value[None])
        plgpu.store(out_total.at[block, head, columns], total)

    shapes = [
        jax.ShapeDtypeStruct((programs, heads, taps, C, C), jnp.float32),
        jax.ShapeDtypeStruct((programs, heads, C), jnp.float32),
    ]
    before = () if state is None else (state.qk,)
    grid = (programs, heads, C // width)
    shares, totals = static.call(
        cca_mix_correlate, settings, grid, shapes, tile=tokens * width
    )(*flat[:2], dy, positions, *before)
    return jnp.sum(shares, axis=0).swapaxes(0, 1), jnp.sum(totals, axis=0)


def _weights(static: Static, weights: Weights, correlations, total, d_temperature) -> Weights:
    """Gradients of the weights, in their dtypes; see the top of the file."""
    C, heads = static.C, static.H + static.K
    scales, matrices = _by_distance(static, weights)
    assert weights.depthwise_bias is not None
    bias = weights.depthwise_bias.astype(jnp.float32)
    d_matrices, d_scales = [], [jnp.zeros((heads, C), jnp.float32)] * static.K0
    for d in range(static.K1):
        grown = bias.reshape(heads, C, 1) * total[:, None]
        for e in range(static.K0):
            grown = grown + scales[e] * correlations[d + e]
            d_scales[e] = d_scales[e] + jnp.sum(matrices[d] * correlations[d + e], axis=-1)
        d_matrices.append(grown)
    d_bias = jnp.einsum("dhio,ho->hi", matrices, total, precision=jax.lax.Precision.HIGHEST)
    found = Weights(
        depthwise=jnp.stack(d_scales[::-1]).reshape(static.K0, -1),
        depthwise_bias=d_bias.reshape(-1),
        grouped=jnp.stack(d_matrices[::-1]),
        grouped_bias=total.reshape(-1),
        temperature=d_temperature,
    )
    return Weights(*(d.astype(w.dtype) for d, w in zip(found, weights, strict=True)))
