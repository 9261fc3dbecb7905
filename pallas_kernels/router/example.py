"""A small call of the op."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.draws import Draws
from pallas_kernels.router.types import Weights


def draw(key: jax.Array | int, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """Arguments for T=24 tokens, D=32, R=16, 5 classes; the last four tokens are padding."""
    T, D, R, classes = 24, 32, 16, 5
    draws = Draws(key, dtype)
    weights = Weights(
        down=draws.normal((D, R), D**-0.5),
        down_bias=draws.normal((R,)),
        state_scale=draws.normal((R,)),
        norm=draws.normal((R,), 0.3, mean=1),
        fc1=draws.normal((R, R), R**-0.5),
        fc1_bias=draws.normal((R,)),
        fc2=draws.normal((R, R), R**-0.5),
        fc2_bias=draws.normal((R,)),
        out=draws.normal((R, classes)),
    )
    wide = jnp.promote_types(dtype, jnp.float32)
    biases = draws.normal((classes,), 0.1, dtype=wide)
    live = draws.array(np.arange(T) < T - 4, jnp.bool_)
    args = (draws.normal((T, D)), draws.normal((T, R)), weights, biases, live)
    return args, {"top_k": 1, "eps": 1e-5, "norm_dtype": wide, "softmax_dtype": wide}
