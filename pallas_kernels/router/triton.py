"""The whole router in one launch for AMD and NVIDIA GPUs; its backward pass is `backward.py`.

A program routes a tile of tokens from the down-projection to the histogram: each token's input is
read once and nothing between input and decision goes to memory. The weights (1.3 MiB in ZAYA1-8B)
come from the second-level cache. Each program counts its own choices and XLA adds the counts.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import special, tuned
from pallas_kernels.dots import dot
from pallas_kernels.router import backward
from pallas_kernels.router.tiles import MAX_CLASSES, MIN_TILE, Static, Tile
from pallas_kernels.router.types import Routing, Weights

DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))


def supports(
    x, state, weights, biases, live=None, *, top_k, eps, norm_dtype, softmax_dtype
) -> str | None:
    """What a call has that the kernel lacks; None if nothing."""
    if weights.down is None:
        return "a router with a down-projection and an MLP, not a linear one"
    if weights.fc2 is None or weights.deeper is not None:
        hidden = [weights.fc1, weights.fc2, *(weights.deeper or ())]
        return f"an MLP of 2 hidden layers, not {sum(w is not None for w in hidden)}"
    if top_k != 1:
        return f"top_k = 1, not {top_k}"
    if jnp.dtype(softmax_dtype) != jnp.float32 or biases.dtype != jnp.float32:
        return f"a softmax and biases in float32, not {jnp.dtype(softmax_dtype)}, {biases.dtype}"
    arrays = (x, *jax.tree.leaves((state, weights)))
    for dtype in (*(a.dtype for a in arrays), norm_dtype):
        if jnp.dtype(dtype) not in DTYPES:
            return f"dtypes float32 and bfloat16, not {jnp.dtype(dtype)}"
    R, classes = weights.norm.shape[0], weights.out.shape[1]
    if R % MIN_TILE:
        return f"a router width that {MIN_TILE} divides, not {R}"
    if classes > MAX_CLASSES:
        return f"at most {MAX_CLASSES} classes, not {classes}"
    return None


def router(x, state, weights, biases, live=None, *, top_k, eps, norm_dtype, softmax_dtype):
    """See the package."""
    del top_k, softmax_dtype  # `supports` sees to them
    static = Static.of(x, state, weights, eps=eps, norm_dtype=norm_dtype)
    norm = weights.norm  # multiplies in `norm_dtype`, as it is stored
    weights = jax.tree.map(lambda w: w.astype(x.dtype), weights)._replace(norm=norm)
    if not static.with_state:
        state, weights = None, weights._replace(state_scale=None)
    decided, _ = _route(static, x, state, weights, biases, live)
    return decided


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _route(static: Static, x, state, weights: Weights, biases, live):
    """The routing, and each token's choice whether it is live or not."""
    settings = tuned.settings("router", "forward", static.dtype)
    tokens, block = static.tokens(settings), min(settings["block"], pl.next_power_of_2(static.D))
    programs = pl.cdiv(static.T, tokens)
    names = [name for name, w in weights._asdict().items() if w is not None]

    def router_forward(x_ref, *refs):
        w = dict(zip(names, refs, strict=False))
        biases_ref, *optional = refs[len(names) : -7]
        state_ref = optional.pop(0) if static.with_state else None
        live_ref = optional.pop(0) if live is not None else None
        index, weight, next_state, probability, log_normalizer, choices, counts = refs[-7:]
        tile = Tile(static, pl.program_id(0) * tokens, tokens)

        def project(i, parts):
            columns = tile.load(x_ref, i * block, block, static.D)
            shape = (block, static.part)
            rows = i * block + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
            across = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
            return tuple(
                part
                + dot(
                    columns,
                    plgpu.load(w["down"].at[rows, across + at], mask=rows < static.D, other=0),
                )
                for part, at in zip(parts, static.starts, strict=True)
            )

        start = (jnp.zeros((tokens, static.part), jnp.float32),) * len(static.starts)
        parts = jax.lax.fori_loop(0, pl.cdiv(static.D, block), project, start)
        shifts = static.vector(w["down_bias"])
        hidden = [(a + b).astype(static.dtype) for a, b in zip(parts, shifts, strict=True)]
        if static.with_state:
            scales = static.vector(w["state_scale"])
            hidden = [
                a + b * scale.astype(static.dtype)
                for a, b, scale in zip(hidden, tile.load_parts(state_ref), scales, strict=True)
            ]
        tile.store_parts(next_state, hidden)

        unit, _ = static.unit(hidden)
        hidden = static.normed(unit, w["norm"])
        hidden = static.mlp(hidden, w, settings["chunk"])
        hidden = [special.gelu(a.astype(jnp.float32)).astype(static.dtype) for a in hidden]
        logits = static.logits(hidden, w["out"])
        top = jnp.max(logits, axis=1, keepdims=True)
        shares = jnp.exp(logits - top)
        total = jnp.sum(shares, axis=1, keepdims=True)
        shares = shares / total
        tile.store(probability, 0, static.classes, shares)
        tile.store_vector(log_normalizer, jnp.sum(top + jnp.log(total), axis=1))

        # The bias moves the choice, never the weight.
        column = jnp.arange(static.columns, dtype=jnp.int32)
        exists = column < static.classes
        shift = plgpu.load(biases_ref.at[column], mask=exists, other=0)
        biased = jnp.where(exists[None], shares + shift[None], -jnp.inf)
        choice = jnp.argmax(biased, axis=1).astype(jnp.int32)
        chosen = column[None] == choice[:, None]
        tile.store_vector(weight, jnp.sum(jnp.where(chosen, shares, 0), axis=1))
        tile.store_vector(choices, choice)
        counted = tile.index < static.T
        if live_ref is not None:
            counted = counted & tile.load_vector(live_ref, False)
            choice = jnp.where(counted, choice, static.classes)
        tile.store_vector(index, choice)
        own = jnp.sum(jnp.where(chosen & counted[:, None], 1, 0), axis=0)
        plgpu.store(counts.at[pl.program_id(0) * static.classes + column], own, mask=exists)

    def shaped(*shape, dtype=static.dtype):
        return jax.ShapeDtypeStruct(shape, dtype)

    T, classes = static.T, static.classes
    *outs, choices, shares = static.call(
        router_forward,
        settings,
        tokens,
        [
            shaped(T, dtype=jnp.int32),
            shaped(T),
            shaped(T, static.R),
            shaped(T, classes, dtype=jnp.float32),
            shaped(T, dtype=jnp.float32),
            shaped(T, dtype=jnp.int32),
            shaped(programs * classes, dtype=jnp.int32),
        ],
    )(
        x,
        *(w for w in weights if w is not None),
        biases,
        *((state,) if static.with_state else ()),
        *((live,) if live is not None else ()),
    )
    index, weight, next_state, probability, log_normalizer = outs
    counts = jnp.sum(shares.reshape(programs, classes), axis=0) if programs > 1 else shares
    routing = Routing(
        index[:, None], weight[:, None], next_state, probability, counts, log_normalizer
    )
    return routing, choices


def _forward(static: Static, x, state, weights, biases, live):
    routing, choices = _route(static, x, state, weights, biases, live)
    return (routing, choices), (x, state, weights, biases, live, routing.state, choices)


def _backward(static: Static, kept, cotangents):
    x, state, weights, biases, live, hidden, choices = kept
    dx, d_state, d_weights = backward.gradients(
        static, x, state, weights, hidden, choices, cotangents[0]
    )
    return dx, d_state, d_weights, jnp.zeros_like(biases), None


_route.defvjp(_forward, _backward)
