"""The experts on quantized weights, portable; made for CPUs, where decoding is reading weights.

Few assignments: a turn for every expert that is chosen, whose weights are read as they are stored.
XLA's CPU backend does not fuse a conversion into a matmul, but it does into elementwise work: for a
single token a product is a sum of rows of weights, each times a number, a few rows at a time and
contiguous along the columns. For more tokens a few rows are converted, which stay in the cache, and
multiplied. Measured on one core against float32 weights: 2.2 to 2.4 times as fast for one token in
all three kinds, 1.5 to 1.8 times for four.

Many: an expert at a time is converted whole, for all tokens that chose it.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.dots import matmul
from pallas_kernels.grouped_matmul.layout import Layout, lay_out
from pallas_kernels.grouped_matmul.xla import FEW, swiglu
from pallas_kernels.quantized import Quantized, of_nibbles

ADDED = 8  # rows of weights that one pass over the columns adds up
CONVERTED = 32  # rows of stored weights that are converted at a time
BLOCK = 128  # rows of a turn, where there are many


def experts(
    x: jax.Array, index: jax.Array, weight: jax.Array, gate_up: Quantized, down: Quantized
) -> jax.Array:
    """See `pallas_kernels.grouped_matmul.experts`."""
    (tokens, choices), num_experts = index.shape, gate_up.shape[0]
    if index.size == 0 or num_experts == 0:
        return jnp.zeros_like(x)
    few = index.size <= FEW
    rows = rows_of_turn(index.size, num_experts) if few else BLOCK
    layout = lay_out(index, num_experts, rows)
    y = (_few if few else _many)(layout, rows, x, choices, gate_up, down)
    place = jnp.argsort(layout.order).astype(jnp.int32)  # of an assignment, among sorted rows
    y = y[place].reshape(tokens, choices, -1)
    return (y * weight[..., None].astype(y.dtype)).sum(1).astype(x.dtype)


def rows_of_turn(assignments: int, num_experts: int) -> int:
    """Rows that a pass over an expert's weights computes at once, used or not."""
    return 1 if assignments <= num_experts // 2 else 2 if assignments <= 2 * num_experts else 4


def _few(layout: Layout, rows: int, x, choices: int, gate_up, down) -> jax.Array:
    """[N + rows, D]: the experts' outputs in sorted rows, zero where there is no expert."""

    def turn(i, y):
        expert, first, stop = layout.tiles[i]
        h = swiglu(product(_tokens(layout, first, stop, rows, x, choices), gate_up, expert))
        return _put(y, product(h, down, expert), first, stop)

    turns = jnp.sum(layout.tiles[:, 0] < gate_up.shape[0], dtype=jnp.int32)
    return lax.fori_loop(0, turns, turn, _zeros(layout, rows, x))


def _many(layout: Layout, rows: int, x, choices: int, gate_up, down) -> jax.Array:
    """As `_few`."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    chosen = layout.runs[:, 1] > layout.runs[:, 0]
    order = jnp.argsort(~chosen, stable=True).astype(jnp.int32)

    def of_expert(i, y):
        expert = order[i]
        into, out_of = (_one(w, expert).dequantize(wide) for w in (gate_up, down))
        start, stop = layout.runs[expert, 0], layout.runs[expert, 1]

        def turn(j, y):
            first = start + j * rows
            left = _tokens(layout, first, stop, rows, x, choices).astype(wide)
            h = swiglu(matmul(left, into).astype(x.dtype)).astype(wide)
            return _put(y, matmul(h, out_of).astype(x.dtype), first, stop)

        return lax.fori_loop(0, lax.div(stop - start + (rows - 1), rows), turn, y)

    turns = jnp.sum(chosen, dtype=jnp.int32)
    return lax.fori_loop(0, turns, of_expert, _zeros(layout, rows, x))


def _zeros(layout: Layout, rows: int, x: jax.Array) -> jax.Array:
    return jnp.zeros((layout.order.shape[0] + rows, x.shape[1]), x.dtype)


def _tokens(layout: Layout, first, stop, rows: int, x, choices: int) -> jax.Array:
    """The rows of x behind sorted rows `first`, `first + 1`, ...; behind `stop`, any."""
    row = jnp.minimum(first + jnp.arange(rows, dtype=jnp.int32), stop - 1)
    return x[lax.div(layout.order[row], jnp.int32(choices))]


def _put(y: jax.Array, new: jax.Array, first, stop) -> jax.Array:
    """Overwrites `y[first:stop]` with the rows of `new`, in place inside a loop."""
    old = lax.dynamic_slice_in_dim(y, first, new.shape[0])
    valid = (first + jnp.arange(new.shape[0]) < stop)[:, None]
    return lax.dynamic_update_slice_in_dim(y, jnp.where(valid, new, old), first, 0)


def _one(weights: Quantized, expert: jax.Array) -> Quantized:
    """The matrix [R, C] of one expert."""
    take = lambda x: lax.dynamic_index_in_dim(x, expert, keepdims=False)  # noqa: E731
    return jax.tree.map(take, weights)


def product(left: jax.Array, weights: Quantized, expert: jax.Array) -> jax.Array:
    """`left [B, R]` times an expert's matrix: [B, C] in the dtype of `left`, sums float32."""
    wide = jnp.promote_types(left.dtype, jnp.float32)
    unit = 8 // weights.bits  # values of a byte
    stored, columns = weights.values.shape[1:]  # bytes of a column, columns
    span = weights.group // unit  # bytes of a column in a group
    alone = left.shape[0] == 1
    step = _divisor(span, ADDED // unit if alone else CONVERTED)
    rows = left.astype(wide)

    def taken(byte, count: int) -> jax.Array:
        return lax.dynamic_slice(weights.values, (expert, byte, 0), (1, count, columns))[0]

    def operand(first, count: int) -> jax.Array:
        return lax.dynamic_slice_in_dim(rows, first, count, axis=1)

    def add(i, total):
        byte = i * step
        group = lax.div(byte, span)
        scale = lax.dynamic_slice(weights.scales, (expert, group, 0), (1, 1, columns))[0]
        # The halves of bytes are `span` rows apart, see `quantized.pack`.
        first = byte + group * (span * (unit - 1))
        part = jnp.zeros_like(total)
        # One slice a row: of a common one XLA would write the conversion to memory.
        for own, count in [(j, 1) for j in range(step)] if alone else [(0, step)]:
            packed = taken(byte + own, count)
            for half in range(unit):
                at = operand(first + own + half * span, count)
                values = _numbers(packed, weights, half, wide)
                part = part + (at * values if alone else matmul(at, values))
        return total + part * (scale.astype(wide) * _factor(weights))

    total = jnp.zeros((left.shape[0], columns), wide)
    return lax.fori_loop(0, stored // step, add, total).astype(left.dtype)


def _numbers(packed: jax.Array, weights: Quantized, half: int, wide) -> jax.Array:
    """Stored values as numbers, yet to be multiplied by `_factor`."""
    if weights.bits == 4:
        nibble = (packed >> 4) if half else (packed & 15)
        return of_nibbles(nibble.astype(jnp.int8), weights.kind).astype(wide)
    if weights.kind == "int8":
        return packed.astype(wide)
    # The bits of e4m3fn, moved to where float16 has them, are the same number over 2^8 (the zero
    # points of the exponents differ), subnormal ones too: a shift instead of a case for each.
    bits = packed.astype(jnp.uint16)
    bits = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
    return lax.bitcast_convert_type(bits, jnp.float16).astype(wide)


def _factor(weights: Quantized) -> float:
    return 256.0 if weights.kind == "fp8" else 1.0


def _divisor(size: int, most: int) -> int:
    """The largest divisor of `size` that is at most `most`."""
    return next(d for d in range(min(size, most), 0, -1) if math.gcd(d, size) == d)
