"""What one layer remembers of a sequence, and how new tokens come to it."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.cca_mix import State, last_state
from zaya_jax.config import Model

__all__ = ["LayerCache", "append", "keys_and_values", "last_state"]


class LayerCache(NamedTuple):
    """k and v [B, K, T, C] of the tokens so far, and the CCA state (None for other kinds).

    `mla` keeps one latent a token as its k, and nothing (C = 0) as its v.

    With a `table` [B, N] int32 the others are a pool of pages, [P, ...], which rows hold by it: see
    `paged`. `scales` of k and v, float32 [P, K, T], are what their int8 numbers are multiplied by.
    """

    k: jax.Array
    v: jax.Array
    state: State | None = None
    table: jax.Array | None = None
    scales: tuple[jax.Array, jax.Array] | None = None


def keys_and_values(
    model: Model, batch: int, capacity: int, heads: int, state: State | None = None
) -> LayerCache:
    """An empty cache of `heads` kv heads for `batch` rows of at most `capacity` tokens."""
    shape = (batch, heads, capacity, model.attention.head_dim)
    keys = jnp.zeros(shape, jnp.dtype(model.activation_dtype))
    return LayerCache(keys, jnp.zeros_like(keys), state)


def append(cache: LayerCache, k: jax.Array, v: jax.Array, at: jax.Array) -> LayerCache:
    """Writes keys and values of S new tokens at each row's index `at`.

    The caller sees to it that there is room: an index is data, and cannot be refused under jit.

    Args:
      k, v: [B, S, K, C].
      at: [B] int32 first index to write.
    """

    def write(old: jax.Array, new: jax.Array) -> jax.Array:
        new = new.astype(old.dtype).transpose(0, 2, 1, 3)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
        return jax.vmap(put)(old, new, at)

    return cache._replace(k=write(cache.k, k), v=write(cache.v, v))
