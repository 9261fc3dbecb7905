"""A small call of `cross_entropy`, and those of the 8B."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.draws import Draws
from pallas_kernels.shapes import ZAYA1_8B, Call, Form


def draw(key: jax.Array | int, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """`(args, kwargs)`: 40 tokens, 96 words, in uneven chunks of tokens."""
    tokens, hidden_size, vocabulary = 40, 32, 96
    draws = Draws(key, dtype)
    hidden = draws.normal((tokens, hidden_size))
    head = draws.normal((vocabulary, hidden_size), hidden_size**-0.5)
    targets = draws.array(draws.numpy.integers(vocabulary, size=tokens), jnp.int32)
    return (hidden, head, targets), {"chunk": 16}


def shapes_8b(form: Form) -> dict[str, Call]:
    """The loss of a training step; generation has logits of single tokens only.

    In float32 too: so the head is where parameters are stored in float32 and `logits` is of the
    policy's fp32 set.
    """
    if not form.trains:
        return {}
    T, D, V = form.tokens, ZAYA1_8B.hidden, ZAYA1_8B.vocabulary
    targets = jax.ShapeDtypeStruct((T,), jnp.int32)

    def call(dtype: jnp.dtype) -> Call:
        hidden, head = (jax.ShapeDtypeStruct((n, D), dtype) for n in (T, V))
        return Call((hidden, head, targets))

    return {"": call(jnp.dtype("bfloat16")), "float32": call(jnp.dtype("float32"))}
