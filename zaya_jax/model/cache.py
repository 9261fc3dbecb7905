"""What cached decoding remembers of a sequence, per layer.

Beside keys and values, CCA keeps the last K0 + K1 - 2 latents before the convolutions and the
delayed half of the last value. The router's depth averaging runs over layers, not over time: it
needs no cache.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.cca_mix import State
from zaya_jax.config import Model


class LayerCache(NamedTuple):
    """One layer: k and v [B, K, T, C], and the CCA state (None for plain attention)."""

    k: jax.Array
    v: jax.Array
    state: State | None


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["layers", "lengths"], meta_fields=["filled"]
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """All layers, and the live length of each row: lengths [B] int32.

    filled: static; False until a prompt was written. A filled cache continues by single tokens.
    """

    layers: tuple[LayerCache, ...]
    lengths: jax.Array
    filled: bool = False

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold."""
        return self.layers[0].k.shape[2]


def empty(model: Model, batch: int, capacity: int) -> Cache:
    """A cache for `batch` rows of at most `capacity` tokens, in the activation dtype."""
    a, dtype = model.attention, jnp.dtype(model.activation_dtype)
    keys = (batch, a.kv_heads, capacity, a.head_dim)
    past = sum(a.conv_kernels) - 2

    def layer() -> LayerCache:
        state = None
        if a.kind == "cca":
            qk = jnp.zeros((batch, past, (a.heads + a.kv_heads) * a.head_dim), dtype)
            state = State(qk, jnp.zeros((batch, a.kv_heads * a.head_dim // 2), dtype))
        return LayerCache(jnp.zeros(keys, dtype), jnp.zeros(keys, dtype), state)

    layers = tuple(layer() for _ in range(model.num_layers))
    return Cache(layers, jnp.zeros((batch,), jnp.int32))


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


def last_state(before: State, qk: jax.Array, v_delayed: jax.Array, counts: jax.Array) -> State:
    """The CCA state after the first `counts` of S new tokens of each row.

    Args:
      before: state in front of the new tokens.
      qk: [B, S, N] latents before the convolutions.
      v_delayed: [B, S, K * C / 2].
      counts: [B] int32, 0..S; a row with 0 keeps its state.
    """
    past = before.qk.shape[1]
    row = jnp.concatenate([before.qk, qk.astype(before.qk.dtype)], axis=1)
    take = lambda r, n: jax.lax.dynamic_slice_in_dim(r, n, past)  # noqa: E731
    values = jnp.concatenate([before.v_delayed[:, None], v_delayed.astype(row.dtype)], axis=1)
    value = jnp.take_along_axis(values, counts[:, None, None], axis=1)[:, 0]
    return State(jax.vmap(take)(row, counts), value)
