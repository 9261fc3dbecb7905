"""A small call of `cross_entropy`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.draws import Draws


def draw(key: jax.Array | int, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """`(args, kwargs)`: 40 tokens, 96 words, in uneven chunks of tokens."""
    tokens, hidden_size, vocabulary = 40, 32, 96
    draws = Draws(key, dtype)
    hidden = draws.normal((tokens, hidden_size))
    head = draws.normal((vocabulary, hidden_size), hidden_size**-0.5)
    targets = draws.array(draws.numpy.integers(vocabulary, size=tokens), jnp.int32)
    return (hidden, head, targets), {"chunk": 16}
