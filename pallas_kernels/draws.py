"""Random arguments for the examples of ops, drawn by NumPy: jax would compile for every shape."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


class Draws:
    """Arrays drawn one after the other; the same key gives the same arrays.

    Args:
      key: of `jax.random`, or an int.
      dtype: of the arrays where none is given.
    """

    def __init__(self, key: jax.Array | int, dtype: jnp.dtype = jnp.float32):
        seed = key if isinstance(key, int) else np.asarray(jax.random.key_data(key)).ravel()
        self.numpy = np.random.default_rng(seed)
        self.dtype = dtype

    def normal(
        self,
        shape: tuple[int, ...],
        scale: float = 1.0,
        mean: float = 0.0,
        dtype: jnp.dtype | None = None,
    ) -> jax.Array:
        """Normally distributed, with standard deviation `scale`."""
        return self.array(self.numpy.normal(mean, scale, shape), dtype)

    def array(self, values: np.ndarray, dtype: jnp.dtype | None = None) -> jax.Array:
        """`values` on the device."""
        return jnp.asarray(np.asarray(values).astype(jnp.dtype(dtype or self.dtype)))
