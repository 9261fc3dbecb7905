"""A small call of `experts`."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def draw(key: jax.Array, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """`(args, kwargs)`: 96 tokens over 5 experts and the skip class, one expert crowded."""
    tokens, hidden, width, num_experts = 96, 32, 24, 5
    keys = jax.random.split(key, 5)
    drawn = jax.random.randint(keys[0], (tokens, 1), 0, num_experts + 1)
    index = jnp.where(jnp.arange(tokens)[:, None] < tokens // 2, 1, drawn)
    weight = jax.random.uniform(keys[1], (tokens, 1)).astype(dtype)
    x = jax.random.normal(keys[2], (tokens, hidden)).astype(dtype)
    gate_up = jax.random.normal(keys[3], (num_experts, hidden, 2 * width)) * hidden**-0.5
    down = jax.random.normal(keys[4], (num_experts, width, hidden)) * width**-0.5
    return (x, index, weight, gate_up.astype(dtype), down.astype(dtype)), {}
