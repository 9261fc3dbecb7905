"""Gradients of the router: one launch along the chain, then a matmul for each weight matrix.

The kernel starts from the hidden state that the forward pass wrote anyway, goes through the MLP
once more and back, and writes the gradient of each activation beside the activation itself. What is
left are products over all tokens (and dx), which are matmuls of XLA's. Sums over tokens of biases
and scales are shares of programs added by XLA: no atomics, the same bits every time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import special, tuned
from pallas_kernels.dots import dot, matmul, precision
from pallas_kernels.router.tiles import Parts, Static, Tile, row_sums
from pallas_kernels.router.types import Routing, Weights

SUMS = ("down_bias", "fc1_bias", "fc2_bias", "norm", "state_scale")


def gradients(
    static: Static, x, state, weights: Weights, hidden, choices, cotangents: Routing
) -> tuple[jax.Array, jax.Array | None, Weights]:
    """Gradients of x, the state and the weights.

    Args:
      hidden: [T, R] averaged state, before its norm.
      choices: [T] chosen classes, live or not.
      cotangents: of the routing; those of integers are not looked at.
    """
    chain = _chain(static, state, weights, hidden, choices, cotangents)
    d_hidden, d_state, normed, d_a1, h1, d_a2, h2, d_logits, sums = chain

    def over_tokens(a, b):
        """a^T b, in the weights' dtype."""
        product = jax.lax.dot_general(
            a,
            b,
            (((0,), (0,)), ((), ())),
            precision=precision(a, b),
            preferred_element_type=jnp.float32,
        )
        return product.astype(static.dtype)

    assert weights.down is not None and weights.norm is not None
    dx = matmul(d_hidden, weights.down.T)
    named = {name: sums[i].astype(static.dtype) for i, name in enumerate(SUMS)}
    named["norm"] = sums[SUMS.index("norm")].astype(weights.norm.dtype)
    if not static.with_state:
        named["state_scale"] = None
    d_weights = Weights(
        **named,
        down=over_tokens(x, d_hidden),
        fc1=over_tokens(normed, d_a1),
        fc2=over_tokens(h1, d_a2),
        out=over_tokens(h2, d_logits),
    )
    return dx, d_state, d_weights


def _chain(static: Static, state, weights: Weights, hidden, choices, cotangents: Routing):
    settings = tuned.settings("router", "backward", static.dtype)
    tokens, T, R = static.tokens(settings), static.T, static.R
    programs, chunk = pl.cdiv(T, tokens), min(settings["chunk"], static.part)
    names = ["norm", "fc1", "fc1_bias", "fc2", "fc2_bias", "out"]
    names += ["state_scale"] if static.with_state else []

    def router_backward(hidden_ref, choices_ref, *refs):
        w = dict(zip(names, refs, strict=False))
        g_weight, g_state, g_probability, g_log_normalizer = refs[len(names) : len(names) + 4]
        state_ref = refs[len(names) + 4] if static.with_state else None
        d_hidden, d_state, normed, d_a1, h1, d_a2, h2, d_logits, sums = refs[-9:]
        program = pl.program_id(0)
        tile = Tile(static, program * tokens, tokens)
        exists = (tile.index < T)[:, None]

        def add_from(name: str, first, values: jax.Array) -> None:
            """Writes a program's share of a sum over tokens, from channel `first` on."""
            at = (program * len(SUMS) + SUMS.index(name)) * R + first
            total = jnp.sum(jnp.where(exists, values, 0), axis=0)
            plgpu.store(sums.at[pl.ds(at, values.shape[1])], total)

        def add(name: str, parts: Parts) -> None:
            for at, part in zip(static.starts, parts, strict=True):
                add_from(name, at, part)

        # Forward again.
        unit, inverse = static.unit(tile.load_parts(hidden_ref))
        layer0 = static.normed(unit, w["norm"])
        tile.store_parts(normed, layer0)
        a2 = static.mlp(layer0, w, settings["chunk"])
        pairs = [special.gelu_and_slope(a.astype(jnp.float32)) for a in a2]
        layer2 = [value.astype(static.dtype) for value, _ in pairs]
        tile.store_parts(h2, layer2)
        logits = static.logits(layer2, w["out"])
        shares = jnp.exp(logits - jnp.max(logits, axis=1, keepdims=True))
        shares = shares / jnp.sum(shares, axis=1, keepdims=True)

        # And back.
        column = jax.lax.broadcasted_iota(jnp.int32, shares.shape, 1)
        chosen = column == tile.load_vector(choices_ref)[:, None]
        g = tile.load(g_probability, 0, static.columns, static.classes)
        g = g + jnp.where(chosen, tile.load_vector(g_weight).astype(jnp.float32)[:, None], 0)
        g = g - jnp.sum(g * shares, axis=1, keepdims=True)
        g = shares * (g + tile.load_vector(g_log_normalizer)[:, None])
        g = g.astype(static.dtype)
        tile.store(d_logits, 0, static.classes, g)

        back = [dot(g, static.out_block(w["out"], at), 1, 1) for at in static.starts]
        back = [b * slope for b, (_, slope) in zip(back, pairs, strict=True)]
        add("fc2_bias", back)
        back = [b.astype(static.dtype) for b in back]
        tile.store_parts(d_a2, back)

        def first_layer(i, totals):
            first = i * chunk
            a1 = static.inner(layer0, w, first, chunk).astype(jnp.float32)
            value, slope = special.gelu_and_slope(a1)
            tile.store(h1, first, R, value)
            g = jnp.zeros((tokens, chunk), jnp.float32)
            for part, at in zip(back, static.starts, strict=True):
                block = w["fc2"][pl.ds(first, chunk), pl.ds(at, static.part)]
                g = g + dot(part, block, 1, 1)
            g = g * slope
            add_from("fc1_bias", first, g)
            g = g.astype(static.dtype)
            tile.store(d_a1, first, R, g)
            return tuple(
                total + dot(g, w["fc1"][pl.ds(at, static.part), pl.ds(first, chunk)], 1, 1)
                for total, at in zip(totals, static.starts, strict=True)
            )

        zeros = jnp.zeros((tokens, static.part), jnp.float32)
        back = jax.lax.fori_loop(0, R // chunk, first_layer, (zeros,) * len(static.starts))
        add("norm", [b * u for b, u in zip(back, unit, strict=True)])
        back = [b * weight for b, weight in zip(back, static.vector(w["norm"]), strict=True)]
        along = row_sums([b * u for b, u in zip(back, unit, strict=True)]) / R
        back = [
            inverse * (b - u * along) + passed.astype(jnp.float32)
            for b, u, passed in zip(back, unit, tile.load_parts(g_state), strict=True)
        ]
        add("down_bias", back)
        tile.store_parts(d_hidden, back)
        if static.with_state:
            before = tile.load_parts(state_ref)
            scales = static.vector(w["state_scale"])
            add(
                "state_scale",
                [b * s.astype(jnp.float32) for b, s in zip(back, before, strict=True)],
            )
            tile.store_parts(d_state, [b * s for b, s in zip(back, scales, strict=True)])

    def shaped(*shape, dtype=static.dtype):
        return jax.ShapeDtypeStruct(shape, dtype)

    wide = shaped(T, R)
    d_hidden, d_state, *rest, sums = static.call(
        router_backward,
        settings,
        tokens,
        [
            wide,
            wide if static.with_state else shaped(1, R),
            *(wide,) * 5,
            shaped(T, static.classes),
            shaped(programs * len(SUMS) * R, dtype=jnp.float32),
        ],
    )(
        hidden,
        choices,
        *(getattr(weights, name) for name in names),
        cotangents.weight.reshape(-1),
        cotangents.state,
        cotangents.probabilities,
        cotangents.log_normalizer,
        *((state,) if static.with_state else ()),
    )
    totals = jnp.sum(sums.reshape(programs, len(SUMS), R), axis=0)
    return d_hidden, d_state if static.with_state else None, *rest, totals
