"""A small call of `experts`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.draws import Draws


def draw(key: jax.Array | int, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """`(args, kwargs)`: 96 tokens over 5 experts and the skip class, one expert crowded."""
    tokens, hidden, width, num_experts = 96, 32, 24, 5
    draws = Draws(key, dtype)
    index = draws.numpy.integers(num_experts + 1, size=(tokens, 1))
    index[: tokens // 2] = 1
    weight = draws.array(draws.numpy.random((tokens, 1)))
    x = draws.normal((tokens, hidden))
    gate_up = draws.normal((num_experts, hidden, 2 * width), hidden**-0.5)
    down = draws.normal((num_experts, width, hidden), width**-0.5)
    return (x, draws.array(index, jnp.int32), weight, gate_up, down), {}
