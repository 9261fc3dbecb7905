"""What one layer remembers of many sequences, in pages that they hold by table.

A pool has P pages with room for T tokens each; a sequence's position p lies in the page
`table[row, p // T]` at p % T. Beside the keys and values of its tokens a page keeps the CCA state
after the last of them. So a sequence goes on from its last page alone, and whoever shares the full
pages of a prompt has the state at their border with them.

Page 0 is nobody's: rows that rest, and padding, write there.

A layer is a `LayerCache` with a table [B, N] int32, 0 where a row has no page, whose other fields
have P rows: k and v [P, K, T, C], the state [P, past, N] and [P, K * C / 2]. With scales [P, K, T]
keys and values are int8, each token's head rounded to the 255 steps of its own largest number; a
chunk attends its own as they were, and what was before it as the pages have it.

A call has one new token a row (decoding), or a chunk of S tokens that begins at a border of pages
(prefill); S is then a multiple of T.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.cca_mix import Place, State
from pallas_kernels.decode_attention.reference import plain
from zaya_jax.model.attention.cache import LayerCache, last_state


def pages_of(table: jax.Array, index: jax.Array, wanted: jax.Array, room: int) -> jax.Array:
    """The pages [B, J] in which new tokens go, 0 for those that are not wanted.

    Args:
      table: [B, N].
      index: [B] position of each row's first new token.
      wanted: [B, J] whether anything of the J pages from there on is to be written.
    """
    column = index[:, None] // room + jnp.arange(wanted.shape[1])
    pages = jnp.take_along_axis(table, column, axis=1, mode="fill", fill_value=0)
    return jnp.where(wanted, pages, 0)


def wanted_pages(live: jax.Array, room: int) -> jax.Array:
    """[B, J]: whether each page of a chunk gets a token; live [B, S] is True for the first ones."""
    return live[:, :: room if live.shape[1] > 1 else 1]


def append(
    cache: LayerCache, k: jax.Array, v: jax.Array, lengths: jax.Array, live: jax.Array
) -> LayerCache:
    """Writes keys and values [B, S, K, C] of new tokens behind the first `lengths` of each row.

    Of rows that rest, and of padding, zeros: every row of a call may read page 0 with weights of
    zero, and a number that is not finite would come through.
    """
    room, (B, S) = cache.k.shape[2], k.shape[:2]
    k, v = (jnp.where(live[..., None, None], new, 0) for new in (k, v))
    assert cache.table is not None
    pages = pages_of(cache.table, lengths, wanted_pages(live, room), room)

    def write(pool: jax.Array, new: jax.Array) -> jax.Array:
        new = new.astype(pool.dtype)
        if S == 1:
            return pool.at[pages[:, 0], :, lengths % room].set(new[:, 0])
        new = new.reshape(B * S // room, room, *new.shape[2:]).swapaxes(1, 2)
        return pool.at[pages.reshape(-1)].set(new)

    if cache.scales is None:
        return cache._replace(k=write(cache.k, k), v=write(cache.v, v))
    (k, k_scales), (v, v_scales) = rounded(k), rounded(v)
    scales = (write(cache.scales[0], k_scales), write(cache.scales[1], v_scales))
    return cache._replace(k=write(cache.k, k), v=write(cache.v, v), scales=scales)


def rounded(heads: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Heads [..., C] as int8 and the scale [...] float32 of each."""
    heads = heads.astype(jnp.float32)
    scales = jnp.max(jnp.abs(heads), axis=-1) / 127
    scales = jnp.where(scales > 0, scales, 1)
    return jnp.round(heads / scales[..., None]).astype(jnp.int8), scales


def narrow(cache: LayerCache) -> LayerCache:
    """An empty cache that keeps int8 where the given one keeps floating point."""
    ones = jnp.ones(cache.k.shape[:3], jnp.float32)
    k, v = (jnp.zeros(x.shape, jnp.int8) for x in (cache.k, cache.v))
    return cache._replace(k=k, v=v, scales=(ones, jnp.ones_like(ones)))


def state_before(cache: LayerCache, lengths: jax.Array) -> State | None:
    """The CCA state after the first `lengths` tokens of each row: anything where that is none, for
    a token of position 0 reads nothing of it."""
    page = last_pages(cache, lengths)
    return jax.tree.map(lambda pool: pool[page], cache.state)


def last_pages(cache: LayerCache, lengths: jax.Array) -> jax.Array:
    """The page [B] that the last of the first `lengths` tokens of each row is in."""
    assert cache.table is not None
    column = jnp.maximum(lengths - 1, 0)[:, None] // cache.k.shape[2]
    return jnp.take_along_axis(cache.table, column, axis=1)[:, 0]


def place(cache: LayerCache, lengths: jax.Array, live: jax.Array) -> Place:
    """Where one new token of each row goes, behind the first `lengths`; live [B, 1]."""
    assert cache.table is not None
    room = cache.k.shape[2]
    after = pages_of(cache.table, lengths, live, room)[:, 0]
    return Place(lengths % room, live[:, 0], (last_pages(cache, lengths), after))


def remember(
    cache: LayerCache,
    before: State,
    qk: jax.Array,
    v_delayed: jax.Array,
    lengths: jax.Array,
    live: jax.Array,
) -> LayerCache:
    """Writes the CCA state at the end of every page that got a token.

    Args:
      before: state after the first `lengths` tokens of each row.
      qk: [B, S, N] latents of the new tokens, before the convolutions.
      v_delayed: [B, S, K * C / 2].
    """
    assert cache.table is not None
    room = cache.k.shape[2]
    wanted, counts = wanted_pages(live, room), jnp.sum(live, axis=1, dtype=jnp.int32)
    pages = pages_of(cache.table, lengths, wanted, room)

    def at(count: jax.Array) -> State:
        return last_state(before, qk, v_delayed, count)

    ends = (jnp.arange(wanted.shape[1], dtype=jnp.int32)[:, None] + 1) * room
    states = jax.vmap(at, out_axes=1)(jnp.minimum(ends, counts))  # [B, J, ...]
    state = jax.tree.map(
        lambda pool, new: pool.at[pages].set(new.astype(pool.dtype)), cache.state, states
    )
    return cache._replace(state=state)


def in_a_row(cache: LayerCache, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Keys and values [B, N * T, K, C] of all pages of the table, one behind the other; those that
    are kept in int8 in `dtype`."""

    def row(pool: jax.Array, scales: jax.Array | None) -> jax.Array:
        found = plain(pool, cache.table, None, pool.dtype)
        if scales is not None:  # gathered first: scaled first, the whole pool would be made plain
            factor = plain(scales[..., None], cache.table, None, scales.dtype)
            found = (found.astype(scales.dtype) * factor).astype(dtype)
        return found.swapaxes(1, 2)

    k_scales, v_scales = cache.scales or (None, None)
    return row(cache.k, k_scales), row(cache.v, v_scales)
