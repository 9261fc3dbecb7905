"""Which tiles of the score matrix a kernel has to visit, and which of them it need not mask.

The kernels see the queries of a kv head as *rows*: row n is head n % G of its group at query
n // G, so that keys are read once for the whole group. Rows and keys are cut into blocks. For every
block of one side, `visits` holds four block numbers of the other side,

    begin <= plain_begin <= plain_end <= end,

where all that is visible lies in [begin, end), and every pair in [plain_begin, plain_end) is
visible: a loop over those needs no mask. Blocks that share no segment are left out at both ends.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Sizes(NamedTuple):
    """Of a call: `group` query heads a kv head, blocks of `rows` rows and of `keys` keys."""

    queries: int  # S
    keys: int  # T
    group: int  # G
    block_rows: int
    block_keys: int
    window: int | None

    @property
    def rows(self) -> int:
        return self.queries * self.group

    @property
    def row_blocks(self) -> int:
        return -(-self.rows // self.block_rows)

    @property
    def key_blocks(self) -> int:
        return -(-self.keys // self.block_keys)


def of_rows(sizes: Sizes, offset: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
    """int32 [B or 1, row_blocks, 4]: the key blocks that each block of rows visits.

    Args:
      offset: int32 [], the position of query 0.
      segment_ids: int [B, T], or None.
    """
    block = sizes.block_keys
    first = jnp.arange(sizes.row_blocks) * sizes.block_rows
    last = jnp.minimum(first + sizes.block_rows, sizes.rows) - 1
    low, high = offset + first // sizes.group, offset + last // sizes.group  # positions

    begin, end = jnp.zeros_like(low), high // block + 1
    plain_begin, plain_end = begin, (low + 1) // block
    if sizes.window is not None:
        begin = jnp.maximum(low - sizes.window + 1, 0) // block
        plain_begin = jnp.maximum(high - sizes.window + block, 0) // block
    return _within_segments(
        (begin, plain_begin, plain_end, end), sizes, offset, segment_ids, transposed=False
    )


def of_keys(sizes: Sizes, offset: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
    """int32 [B or 1, key_blocks, 4]: the blocks of rows that visit each block of keys."""
    block, group = sizes.block_rows, sizes.group
    low = jnp.arange(sizes.key_blocks) * sizes.block_keys  # positions
    high = jnp.minimum(low + sizes.block_keys, sizes.keys) - 1

    # The first row that stands at a position or behind it.
    at_low, at_high = (jnp.clip((x - offset) * group, 0, sizes.rows) for x in (low, high))
    begin, end = at_low // block, jnp.where(at_low < sizes.rows, sizes.row_blocks, 0)
    # A last block with fewer rows is not plain: what stands behind the last row must not count.
    plain_begin, plain_end = -(-at_high // block), jnp.full_like(low, sizes.rows // block)
    if sizes.window is not None:
        # The first row that is too far ahead of the last key, and of the first.
        beyond_high, beyond_low = (
            jnp.clip((x + sizes.window - offset) * group, 0, sizes.rows) for x in (high, low)
        )
        end = jnp.minimum(end, -(-beyond_high // block))
        plain_end = jnp.minimum(plain_end, beyond_low // block)
    return _within_segments(
        (begin, plain_begin, plain_end, end), sizes, offset, segment_ids, transposed=True
    )


def _within_segments(bounds, sizes: Sizes, offset, segment_ids, *, transposed: bool) -> jax.Array:
    """Narrows `bounds`, four of [blocks], to tiles that share a segment; stacks them in order."""
    begin, plain_begin, plain_end, end = (x.astype(jnp.int32)[None] for x in bounds)
    if segment_ids is not None:
        shares, same = _tiles(sizes, offset, segment_ids)  # bool [B, row_blocks, key_blocks]
        if transposed:
            shares, same = shares.swapaxes(1, 2), same.swapaxes(1, 2)
        number = jnp.arange(shares.shape[2], dtype=jnp.int32)
        begin = jnp.maximum(begin, jnp.min(jnp.where(shares, number, number.size), axis=2))
        end = jnp.minimum(end, jnp.max(jnp.where(shares, number + 1, 0), axis=2))
        # Plain tiles must be consecutive: those next to the diagonal are kept.
        differs = ~same & (number >= plain_begin[..., None]) & (number < plain_end[..., None])
        if transposed:
            plain_end = jnp.minimum(
                plain_end, jnp.min(jnp.where(differs, number, number.size), axis=2)
            )
        else:
            plain_begin = jnp.maximum(
                plain_begin, jnp.max(jnp.where(differs, number + 1, 0), axis=2)
            )
    end = jnp.maximum(end, begin)
    plain_begin = jnp.clip(plain_begin, begin, end)
    plain_end = jnp.clip(plain_end, plain_begin, end)
    return jnp.stack([begin, plain_begin, plain_end, end], axis=-1)


def _tiles(sizes: Sizes, offset, segment_ids) -> tuple[jax.Array, jax.Array]:
    """bool [B, row_blocks, key_blocks] each: whether a tile may hold a pair of one segment, and
    whether it holds one segment only. By ranges of ids, whatever their order in a row."""
    own = lax.dynamic_slice_in_dim(segment_ids, offset, sizes.queries, axis=1)
    rows = jnp.arange(sizes.row_blocks * sizes.block_rows)
    own = own[:, jnp.minimum(rows, sizes.rows - 1) // sizes.group]
    own = own.reshape(len(own), -1, sizes.block_rows)
    padding = sizes.key_blocks * sizes.block_keys - sizes.keys
    keys = jnp.pad(segment_ids, ((0, 0), (0, padding)), mode="edge")
    keys = keys.reshape(len(keys), -1, sizes.block_keys)
    own_low, own_high = own.min(2)[:, :, None], own.max(2)[:, :, None]
    key_low, key_high = keys.min(2)[:, None], keys.max(2)[:, None]
    shares = (key_low <= own_high) & (own_low <= key_high)
    same = (own_low == own_high) & (key_low == key_high) & (own_low == key_low)
    return shares, same
