"""A small call of the op."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.router.types import Weights


def draw(key: jax.Array, dtype) -> tuple[tuple, dict]:
    """Arguments for T=24 tokens, D=32, R=16, 5 classes; the last four tokens are padding."""
    T, D, R, classes = 24, 32, 16, 5
    keys = iter(jax.random.split(key, 12))

    def normal(*dims):
        return jax.random.normal(next(keys), dims, dtype)

    weights = Weights(
        down=normal(D, R) * D**-0.5,
        down_bias=normal(R),
        state_scale=normal(R),
        norm=1 + 0.3 * normal(R),
        fc1=normal(R, R) * R**-0.5,
        fc1_bias=normal(R),
        fc2=normal(R, R) * R**-0.5,
        fc2_bias=normal(R),
        out=normal(R, classes),
    )
    wide = jnp.promote_types(dtype, jnp.float32)
    biases = 0.1 * jax.random.normal(next(keys), (classes,), wide)
    args = (normal(T, D), normal(T, R), weights, biases, jnp.arange(T) < T - 4)
    return args, {"top_k": 1, "eps": 1e-5, "norm_dtype": wide, "softmax_dtype": wide}
