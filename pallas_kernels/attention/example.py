"""A small call of `attention`: two packed rows with padding, grouped heads, an odd length."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.draws import Draws


def draw(key: jax.Array | int, dtype: jnp.dtype = jnp.float32) -> tuple[tuple, dict]:
    """`(args, kwargs)` of a call: B=2, S=37, H=4, K=2, C=16, two documents and padding a row."""
    B, S, H, K, C = 2, 37, 4, 2, 16
    draws = Draws(key, dtype)
    q = draws.normal((B, S, H, C))
    k = draws.normal((B, S, K, C))
    v = draws.normal((B, S, K, C))
    ends = np.array([[13, 37], [20, 31]])  # the second row ends in six positions of padding
    position = np.arange(S)
    segment_ids = 1 + np.sum(position[None, :, None] >= ends[:, None, :1], axis=-1)
    segment_ids = np.where(position < ends[:, 1:], segment_ids, 0)
    return (q, k, v, draws.array(segment_ids, jnp.int32)), {"window": 16}
