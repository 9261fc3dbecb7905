"""How a kernel reads the matrices of the experts, as they are or quantized.

Quantized values are converted in registers, exactly: all kinds fit into bfloat16's eight bits.
e4m3fn is never taken for e4m3fnuz, the format of MI300X's own matrix instructions: the products are
of bfloat16 (or of float32 at full precision, where tokens are float32), and it is memory that is
saved. A group's scales multiply the float32 sum over the group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels import offsets
from pallas_kernels.dots import dot
from pallas_kernels.grouped_matmul.tiles import UNIT, block_of
from pallas_kernels.quantized import Quantized, of_nibbles

MOST_GROUP = 128  # of 4 bits: a group is a step, whose operands must fit shared memory


class Matrices:
    """Matrices [E, R, C] as arrays that a kernel takes, and its products with their rows.

    Attributes:
      arrays: operands of the launch.
    """

    def __init__(self, weights: jax.Array | Quantized, transposed: bool = False):
        """Args: transposed: the matrices lie as [E, C, R]; not of quantized ones."""
        self._quantized = weights if isinstance(weights, Quantized) else None
        self._transposed = transposed
        self._rows = weights.shape[2 if transposed else 1]
        self.arrays: tuple[jax.Array, ...] = (
            (weights.values, weights.scales) if isinstance(weights, Quantized) else (weights,)
        )

    def split(self, refs: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """Refs of `arrays`, and those behind them."""
        return refs[: len(self.arrays)], refs[len(self.arrays) :]

    def depth(self, most: int) -> int:
        """Rows of a step, at most `most` if that can be."""
        if self._quantized is None:
            return block_of(self._rows, most)
        group = self._quantized.group
        return group if self._quantized.bits == 4 else block_of(group, most)

    def products(
        self,
        refs: Sequence[Any],
        expert: jax.Array,
        depth: int,
        columns: Sequence[Any],
        left: Callable[[Any], jax.Array],
        totals: Sequence[jax.Array],
    ) -> list[jax.Array]:
        """`totals + left @ (an expert's matrix)` for several blocks of columns, over all rows.

        Args:
          depth: of a step, from `depth`.
          columns: slices, one for each of `totals` [rows, block], float32.
          left: gives the left operand [rows, n] at a slice of n of the contracted axis.
        """

        def add(i, totals):
            parts = self._step(refs, expert, i, depth, columns, left)
            return tuple(a + b for a, b in zip(totals, parts, strict=True))

        return list(lax.fori_loop(0, self._rows // depth, add, tuple(totals)))

    def _step(self, refs, expert, i, depth: int, columns, left) -> list[jax.Array]:
        own = self._quantized
        at = pl.ds(i * depth, depth)
        if own is None:
            rows = left(at)
            if self._transposed:
                return [dot(rows, refs[0][expert, block, at], 1, 1) for block in columns]
            return [dot(rows, refs[0][expert, at, block]) for block in columns]
        group = i if depth == own.group else lax.div(i * depth, own.group)
        scales = [refs[1][expert, group, block].astype(jnp.float32)[None] for block in columns]
        if own.bits == 8:
            rows = left(at)
            found = [refs[0][expert, at, block] for block in columns]
            if own.kind == "fp8":
                found = [lax.bitcast_convert_type(x, jnp.float8_e4m3fn) for x in found]
            parts = [dot(rows, x.astype(rows.dtype)) for x in found]
        else:
            half = depth // 2
            first, last = left(pl.ds(i * depth, half)), left(pl.ds(i * depth + half, half))
            parts = []
            for block in columns:
                packed = refs[0][expert, pl.ds(i * half, half), block].astype(jnp.int32)
                low, high = (of_nibbles(x, own.kind) for x in (packed & 15, packed >> 4))
                part = dot(first, low.astype(first.dtype)) + dot(last, high.astype(last.dtype))
                parts.append(part)
        return [part * scale for part, scale in zip(parts, scales, strict=True)]


def lacks(weights: Quantized) -> str | None:
    """What quantized weights have that the kernels lack; None if nothing."""
    least = 2 * UNIT if weights.bits == 4 else UNIT
    if weights.group % least:
        return f"{weights.kind} groups of multiples of {least} rows, not {weights.group}"
    if weights.bits == 4 and (weights.group & (weights.group - 1) or weights.group > MOST_GROUP):
        return f"{weights.kind} groups of 32, 64 or {MOST_GROUP} rows, not {weights.group}"
    return offsets.lacks(f"{weights.kind} weights", weights.values)
