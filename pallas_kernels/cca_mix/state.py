"""What the next call continues from, and the mix of a token in front of a cache."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from pallas_kernels.cca_mix.types import Cache, Place, State


def last_state(before: State, qk: jax.Array, v_delayed: jax.Array, counts: jax.Array) -> State:
    """The state after the first `counts` of S new tokens of each row.

    Args:
      before: state in front of the new tokens.
      qk: [B, S, N] latents before the convolutions.
      v_delayed: [B, S, K * C / 2].
      counts: [B] int32, 0..S; a row with 0 keeps its state.
    """
    past = before.qk.shape[1]
    row = jnp.concatenate([before.qk, qk.astype(before.qk.dtype)], axis=1)
    take = lambda r, n: jax.lax.dynamic_slice_in_dim(r, n, past)  # noqa: E731
    latents = jax.vmap(take)(row, counts)
    if before.v_delayed is None:
        return State(latents, None)
    values = jnp.concatenate([before.v_delayed[:, None], v_delayed.astype(row.dtype)], axis=1)
    value = jnp.take_along_axis(values, counts[:, None, None], axis=1)[:, 0]
    return State(latents, value)


def append(old: jax.Array, new: jax.Array, place: Place) -> jax.Array:
    """Keys or values [B, K, T, C] with those of a new token, [B, 1, K, C]."""
    new = new.astype(old.dtype)
    if place.pages is not None:
        return old.at[place.pages[1], :, place.slot].set(new[:, 0])
    put = functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1)
    return jax.vmap(put)(old, new.swapaxes(1, 2), place.slot)


def decoding(mix: Callable) -> Callable:
    """`mix` of one token a row, whose keys, values and state go to a cache; see
    `pallas_kernels.cca_mix.cca_mix_decode`."""

    def cca_mix_decode(
        q, k, v_current, v_delayed, weights, cos, sin, positions, cache, place, **parts
    ):
        state, pages = cache.state, place.pages
        before = state if pages is None else jax.tree.map(lambda pool: pool[pages[0]], state)
        new_q, new_k, new_v = mix(
            q, k, v_current, v_delayed, weights, cos, sin, positions, before, **parts
        )
        counts = place.live.astype(jnp.int32)
        after = last_state(before, jnp.concatenate([q, k], axis=-1), v_delayed, counts)
        if pages is not None:
            put = lambda pool, new: pool.at[pages[1]].set(new.astype(pool.dtype))  # noqa: E731
            after = jax.tree.map(put, state, after)
        keys, values = append(cache.keys, new_k, place), append(cache.values, new_v, place)
        return new_q, Cache(keys, values, after)

    return cca_mix_decode
