"""A small call of `cross_entropy`."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def draw(key: jax.Array, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """`(args, kwargs)`: 40 tokens, 96 words, in uneven chunks of tokens."""
    tokens, hidden_size, vocabulary = 40, 32, 96
    keys = jax.random.split(key, 3)
    hidden = jax.random.normal(keys[0], (tokens, hidden_size)).astype(dtype)
    head = (jax.random.normal(keys[1], (vocabulary, hidden_size)) * hidden_size**-0.5).astype(dtype)
    targets = jax.random.randint(keys[2], (tokens,), 0, vocabulary)
    return (hidden, head, targets), {"chunk": 16}
