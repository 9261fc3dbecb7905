"""Attention in tiles that stay in cache, with its own backward pass (FlashAttention-2).

Queries are cut into blocks and, for each, only the key blocks that it can see are visited: those
before the diagonal, inside the window, and not before the oldest segment in the block. A tile of
scores is [B, K, R, block_k], where the R = block_q * G rows are the query heads that share a kv
head, folded into the matmul's rows. Nothing of size S x S ever exists: the forward pass keeps the
output and the log-sum-exp of each row, the backward pass recomputes the probabilities from them.

Both loops are loops of the compiled program, so it has the same size for any S and compiles in
well under a second. On CPU this is also faster than unrolled blocks, whose tiles the scheduler
computes ahead of their use, which puts them all in memory at once.

Source: Dao, FlashAttention-2 (2023), algorithms 1 and 2; the online softmax is that of Milakov
and Gimelshein (2018).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.dots import precision

MAX_BLOCK = 256  # keys a tile; measured best on CPU among 128, 256 and 512


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attention(q, k, v, segment_ids, offset, window, scale):
    return _forward(q, k, v, segment_ids, offset, window, scale)[0]


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    query_offset: jax.Array | int = 0,
    window: int | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Tiled attention; see `pallas_kernels.attention.attention`."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    offset = jnp.asarray(query_offset, jnp.int32)
    out, lse = _attention(q, k, v, segment_ids, offset, window, scale)
    return (out, lse) if return_lse else out


class Tiling(NamedTuple):
    """How a row is cut: S queries into `queries` blocks of block_q, T keys likewise."""

    block_q: int
    block_k: int
    queries: int
    keys: int


def tiling(S: int, T: int) -> Tiling:
    """Blocks of nearly equal size that cover S queries and T keys with little padding.

    Keys come in blocks of at most `MAX_BLOCK`, queries in half of that, so that the tiles on the
    diagonal, half of which is masked, are small.
    """
    if T <= MAX_BLOCK // 2:
        return Tiling(S, T, 1, 1)
    keys = -(-T // MAX_BLOCK)
    block_k = -(-T // (keys * 16)) * 16
    block_q = min(S, block_k // 2)
    return Tiling(block_q, block_k, -(-S // block_q), keys)


def _forward(q, k, v, segment_ids, offset, window, scale):
    S, H = q.shape[1:3]
    T, K = k.shape[1:3]
    tiles = tiling(S, T)
    compute = jnp.promote_types(q.dtype, jnp.float32)
    key_blocks = _to_blocks(k, K, tiles.block_k)
    value_blocks = _to_blocks(v, K, tiles.block_k)
    sight = _Sight(tiles, H // K, S, segment_ids, offset, window)

    def attend(i, q_block):
        def visit(j, state):
            out, row_max, row_sum = state
            scores = sight.mask(i, j, _dot(q_block, _at(key_blocks, j), 3, 3, compute) * scale)
            # A row that sees nothing of this tile yet keeps a huge negative maximum; what it
            # accumulates meanwhile is multiplied by exp(-huge) = 0 once it meets a visible key,
            # and it always does: its own.
            new_max = jnp.maximum(row_max, scores.max(-1, keepdims=True))
            p = jnp.exp(scores - new_max)
            shrink = jnp.exp(row_max - new_max)
            gathered = _dot(p.astype(v.dtype), _at(value_blocks, j), 3, 2, compute)
            return out * shrink + gathered, new_max, row_sum * shrink + p.sum(-1, keepdims=True)

        out = jnp.zeros_like(q_block, compute)
        column = out[..., :1]
        state = (out, column + jnp.finfo(compute).min, column)
        first, end = sight.keys_of(i)
        out, row_max, row_sum = lax.fori_loop(first, end, visit, state)
        return (out / row_sum).astype(q.dtype), row_max + jnp.log(row_sum)

    def step(i, q_block):
        return i + 1, attend(i, q_block)

    _, (out, lse) = lax.scan(step, 0, _to_blocks(q, K, tiles.block_q))
    out, lse = _from_blocks(out, S, H), _from_blocks(lse, S, H)[..., 0]
    return (out, lse), (q, k, v, segment_ids, offset, out, lse)


def _backward(window, scale, residuals, cotangents):
    q, k, v, segment_ids, offset, out, lse = residuals
    d_out, d_lse = cotangents
    S, H = q.shape[1:3]
    T, K = k.shape[1:3]
    tiles = tiling(S, T)
    compute = jnp.promote_types(q.dtype, jnp.float32)
    key_blocks = _to_blocks(k, K, tiles.block_k)
    value_blocks = _to_blocks(v, K, tiles.block_k)
    sight = _Sight(tiles, H // K, S, segment_ids, offset, window)
    # d score = p (d p - delta); the log-sum-exp's own gradient is p d_lse.
    delta = (out.astype(compute) * d_out.astype(compute)).sum(-1, keepdims=True) - d_lse[..., None]

    def step(carry, xs):
        i, dk, dv = carry
        q_block, d_out_block, lse_block, delta_block = xs
        # dk and dv are accumulated transposed, [C, block_k]: that way the small operand of their
        # matmuls is transposed, once per query block, and not the large tile every time.
        q_t, d_out_t = q_block.swapaxes(2, 3), d_out_block.swapaxes(2, 3)

        def visit(j, grads):
            dq_block, dk, dv = grads
            k_block, v_block = _at(key_blocks, j), _at(value_blocks, j)
            scores = sight.mask(i, j, _dot(q_block, k_block, 3, 3, compute) * scale)
            p = jnp.exp(scores - lse_block)
            dp = _dot(d_out_block, v_block, 3, 3, compute)
            ds = (p * (dp - delta_block)).astype(q.dtype)
            dq_block += _dot(ds, k_block, 3, 2, compute)
            dk = _add_at(dk, j, _dot(q_t, ds, 3, 2, compute))
            dv = _add_at(dv, j, _dot(d_out_t, p.astype(v.dtype), 3, 2, compute))
            return dq_block, dk, dv

        grads = (jnp.zeros_like(q_block, compute), dk, dv)
        first, end = sight.keys_of(i)
        dq_block, dk, dv = lax.fori_loop(first, end, visit, grads)
        return (i + 1, dk, dv), dq_block

    blocks = [_to_blocks(x, K, tiles.block_q) for x in (q, d_out, lse[..., None], delta)]
    zeros = jnp.zeros_like(key_blocks.swapaxes(3, 4), compute)
    (_, dk, dv), dq = lax.scan(step, (0, zeros, zeros), tuple(blocks))
    dq = _from_blocks(dq, S, H) * scale
    dk = _from_blocks(dk.swapaxes(3, 4), T, K) * scale
    dv = _from_blocks(dv.swapaxes(3, 4), T, K)
    return dq.astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_attention.defvjp(_forward, _backward)


class _Sight:
    """What the queries of a block can see: which key blocks, and which keys of a tile."""

    def __init__(self, tiles: Tiling, group: int, S: int, segment_ids, offset, window):
        self.tiles, self.group, self.offset, self.window = tiles, group, offset, window
        self.query_segments = self.key_segments = None
        if segment_ids is not None:
            own = lax.dynamic_slice_in_dim(segment_ids, offset, S, axis=1)
            self.query_segments = _segment_blocks(own, tiles.block_q)  # [queries, B, bq]
            self.key_segments = _segment_blocks(segment_ids, tiles.block_k)  # [keys, B, bk]

    def keys_of(self, i):
        """The range [first, end) of the key blocks that query block i has to visit."""
        block_q, block_k = self.tiles.block_q, self.tiles.block_k
        position = self.offset + i * block_q
        first, end = jnp.zeros_like(position), (position + block_q - 1) // block_k + 1
        end = jnp.minimum(end, self.tiles.keys)  # a last block's padding stands behind the keys
        if self.window is not None:
            first = jnp.maximum(position - self.window + 1, 0) // block_k
        if self.key_segments is not None:
            # Blocks whose ranges of ids do not meet hold no pair of equal ids, whatever the order
            # of the ids in a row; the block of the diagonal always meets.
            own, keys = _at(self.query_segments, i), self.key_segments
            meets = (keys.min(-1) <= own.max(-1)) & (own.min(-1) <= keys.max(-1))  # [keys, B]
            first = jnp.maximum(first, jnp.argmax(meets.any(-1)).astype(first.dtype))
        return first, end

    def mask(self, i, j, scores):
        """`scores` [B, K, R, block_k] of query block i and key block j, hugely negative where
        the query may not attend the key."""
        block_q, block_k = self.tiles.block_q, self.tiles.block_k
        row = lax.broadcasted_iota(jnp.int32, scores.shape[2:], 0) // self.group
        key = j * block_k + lax.broadcasted_iota(jnp.int32, row.shape, 1)
        ahead = self.offset + i * block_q + row - key
        visible = ahead >= 0
        if self.window is not None:
            visible &= ahead < self.window
        if self.key_segments is not None:
            own = jnp.repeat(_at(self.query_segments, i), self.group, axis=1)
            same = own[:, :, None] == _at(self.key_segments, j)[:, None, :]
            visible = visible & same[:, None]
        return jnp.where(visible, scores, jnp.finfo(scores.dtype).min)


def _to_blocks(x: jax.Array, K: int, block: int) -> jax.Array:
    """[B, S, K * G, C] to [blocks, B, K, block * G, C], zero-padded behind S."""
    B, S, heads, C = x.shape
    x = jnp.pad(x, ((0, 0), (0, -S % block), (0, 0), (0, 0)))
    x = x.reshape(B, -1, block, K, heads // K, C).transpose(1, 0, 3, 2, 4, 5)
    return x.reshape(*x.shape[:3], -1, C)


def _from_blocks(x: jax.Array, S: int, heads: int) -> jax.Array:
    """The inverse of `_to_blocks`: [blocks, B, K, block * G, C] to [B, S, heads, C]."""
    blocks, B, K, _, C = x.shape
    x = x.reshape(blocks, B, K, -1, heads // K, C).transpose(1, 0, 3, 2, 4, 5)
    return x.reshape(B, -1, heads, C)[:, :S]


def _segment_blocks(segment_ids: jax.Array, block: int) -> jax.Array:
    """[B, S] to [blocks, B, block], padded with -1."""
    B, S = segment_ids.shape
    padded = jnp.pad(segment_ids, ((0, 0), (0, -S % block)), constant_values=-1)
    return padded.reshape(B, -1, block).swapaxes(0, 1)


def _dot(a: jax.Array, b: jax.Array, axis_a: int, axis_b: int, dtype) -> jax.Array:
    """Matmul over one axis of each operand, batched over their two leading axes."""
    dimensions = (((axis_a,), (axis_b,)), ((0, 1), (0, 1)))
    return lax.dot_general(
        a, b, dimensions, precision=precision(a, b), preferred_element_type=dtype
    )


def _at(x: jax.Array, i) -> jax.Array:
    return lax.dynamic_index_in_dim(x, i, axis=0, keepdims=False)


def _add_at(x: jax.Array, i, update: jax.Array) -> jax.Array:
    # A slice, not `x.at[i].add`: that is a scatter, which XLA:CPU does not do in place.
    return lax.dynamic_update_index_in_dim(x, _at(x, i) + update, i, axis=0)
