"""What the router's kernels share: a tile of tokens whose hidden state is held in parts.

The MLP's weights are larger than a workgroup's shared memory, so the R channels of the hidden state
are held as parts of 128 (64 in float32), and a product with a matrix is a sum over parts for each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import interpret, special, tuned
from pallas_kernels.dots import dot
from pallas_kernels.router.types import Weights

MIN_TILE = 16  # the least rows and columns of a matrix instruction
MAX_PART_BYTES = 256  # of a part's row: a square of them fits into 64 KiB of shared memory
MAX_CLASSES = 256

Parts = list[jax.Array]


@dataclasses.dataclass(frozen=True)
class Static:
    """What is known when a kernel is built; hashable, as custom derivatives want it.

    T: tokens. D, R: channels of the input and of the hidden state. classes: experts and skip.
    """

    T: int
    D: int
    R: int
    classes: int
    dtype: Any
    norm_dtype: Any
    eps: float
    with_state: bool
    interpret: bool

    @classmethod
    def of(cls, x, state, weights: Weights, *, eps: float, norm_dtype) -> Static:
        T, D = x.shape
        assert weights.norm is not None  # `supports` sees to it
        return cls(
            T=T,
            D=D,
            R=weights.norm.shape[0],
            classes=weights.out.shape[1],
            dtype=x.dtype,
            norm_dtype=jnp.dtype(norm_dtype),
            eps=float(eps),
            with_state=state is not None and weights.state_scale is not None,
            interpret=interpret.enabled(),
        )

    @property
    def part(self) -> int:
        """Channels of a part: the largest power of two that divides R and is not too wide."""
        return min(self.R & -self.R, MAX_PART_BYTES // self.dtype.itemsize)

    @property
    def starts(self) -> range:
        """First channel of each part."""
        return range(0, self.R, self.part)

    @property
    def columns(self) -> int:
        """Classes, and what pads them to what a kernel can hold."""
        return max(MIN_TILE, pl.next_power_of_2(self.classes))

    def tokens(self, settings: Mapping[str, int]) -> int:
        """Tokens of a tile."""
        return max(MIN_TILE, min(settings["tokens"], pl.next_power_of_2(self.T)))

    def widest(self, settings: Mapping[str, int]) -> int:
        """Bytes of the largest tile of a matrix that a program multiplies."""
        block = min(settings.get("block", 0), pl.next_power_of_2(self.D))
        chunk = min(settings["chunk"], self.part)
        return max(block, chunk, self.columns) * self.part * self.dtype.itemsize

    def call(self, kernel, settings: Mapping[str, int], tokens: int, outputs):
        return pl.pallas_call(
            kernel,
            grid=(pl.cdiv(self.T, tokens),),
            out_shape=outputs,
            compiler_params=tuned.compiler_params(settings, own=self.widest(settings)),
            interpret=self.interpret,
        )

    def vector(self, ref) -> Parts:
        """An [R] parameter in parts [1, part], float32."""
        return [ref[pl.ds(at, self.part)].astype(jnp.float32)[None] for at in self.starts]

    def inner(self, parts: Parts, w, first, chunk: int) -> jax.Array:
        """[tokens, chunk] of the first layer's inputs to its GELU, from channel `first` on."""
        total = w["fc1_bias"][pl.ds(first, chunk)].astype(jnp.float32)[None]
        for part, at in zip(parts, self.starts, strict=True):
            block = w["fc1"][pl.ds(at, self.part), pl.ds(first, chunk)]
            total = total + dot(part, block)
        return total.astype(self.dtype)

    def mlp(self, parts: Parts, w, chunk: int) -> Parts:
        """Inputs to the second layer's GELU, in parts, rounded to the activation dtype.

        The layer between is computed `chunk` channels at a time, each of which is used up at once:
        in a loop, so that no more than one chunk's weights wait in registers.
        """
        chunk = min(chunk, self.part)

        def step(i, totals):
            first = i * chunk
            between = self.inner(parts, w, first, chunk).astype(jnp.float32)
            between = special.gelu(between).astype(self.dtype)
            return tuple(
                total + dot(between, w["fc2"][pl.ds(first, chunk), pl.ds(at, self.part)])
                for total, at in zip(totals, self.starts, strict=True)
            )

        zeros = jnp.zeros((parts[0].shape[0], self.part), jnp.float32)
        totals = jax.lax.fori_loop(0, self.R // chunk, step, (zeros,) * len(parts))
        biases = self.vector(w["fc2_bias"])
        return [(a + b).astype(self.dtype) for a, b in zip(totals, biases, strict=True)]

    def unit(self, parts: Parts) -> tuple[Parts, jax.Array]:
        """x / rms(x) in parts and 1 / rms(x) [tokens, 1], in float32."""
        parts = [x.astype(self.norm_dtype).astype(jnp.float32) for x in parts]
        square = row_sums([x * x for x in parts])
        inverse = jax.lax.rsqrt(square / self.R + self.eps)
        return [x * inverse for x in parts], inverse

    def normed(self, unit: Parts, weight) -> Parts:
        """What the MLP reads, rounded as `rms_norm` rounds."""
        return [
            (w.astype(self.norm_dtype) * x.astype(self.norm_dtype)).astype(self.dtype)
            for x, w in zip(unit, self.vector(weight), strict=True)
        ]

    def logits(self, parts: Parts, out) -> jax.Array:
        """[tokens, columns] in float32, -inf beyond the classes."""
        tokens = parts[0].shape[0]
        logits = jnp.zeros((tokens, self.columns), jnp.float32)
        for part, at in zip(parts, self.starts, strict=True):
            logits = logits + dot(part, self.out_block(out, at))
        return jnp.where(self.is_class(tokens), logits, -jnp.inf)

    def out_block(self, out, at: int) -> jax.Array:
        """[part, columns] of the last matrix, zeros beyond the classes."""
        shape = (self.part, self.columns)
        rows = at + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        columns = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        return plgpu.load(out.at[rows, columns], mask=columns < self.classes, other=0)

    def is_class(self, tokens: int) -> jax.Array:
        return jax.lax.broadcasted_iota(jnp.int32, (tokens, self.columns), 1) < self.classes


def row_sums(parts: Parts) -> jax.Array:
    """[tokens, 1] sum over all channels."""
    total = jnp.sum(parts[0], axis=1, keepdims=True)
    for part in parts[1:]:
        total = total + jnp.sum(part, axis=1, keepdims=True)
    return total


@dataclasses.dataclass(frozen=True)
class Tile:
    """The tokens of a program: `tokens` of them from `first` on."""

    static: Static
    first: Any
    tokens: int

    @property
    def index(self) -> jax.Array:
        return self.first + jnp.arange(self.tokens, dtype=jnp.int32)

    def _at(self, column, width: int, limit: int):
        shape = (self.tokens, width)
        rows = self.first + jax.lax.broadcasted_iota(jnp.int32, shape, 0)
        columns = column + jax.lax.broadcasted_iota(jnp.int32, shape, 1)
        return rows, columns, (rows < self.static.T) & (columns < limit)

    def load(self, ref, column, width: int, limit: int) -> jax.Array:
        """[tokens, width] of a [T, limit] array from `column` on, zeros beyond either end."""
        rows, columns, mask = self._at(column, width, limit)
        return plgpu.load(ref.at[rows, columns], mask=mask, other=0)

    def store(self, ref, column, limit: int, values: jax.Array) -> None:
        rows, columns, mask = self._at(column, values.shape[1], limit)
        plgpu.store(ref.at[rows, columns], values.astype(ref.dtype), mask=mask)

    def load_parts(self, ref) -> Parts:
        """A [T, R] array in parts."""
        static = self.static
        return [self.load(ref, at, static.part, static.R) for at in static.starts]

    def store_parts(self, ref, parts: Parts) -> None:
        for at, part in zip(self.static.starts, parts, strict=True):
            self.store(ref, at, self.static.R, part)

    def load_vector(self, ref, other=0) -> jax.Array:
        return plgpu.load(ref.at[self.index], mask=self.index < self.static.T, other=other)

    def store_vector(self, ref, values: jax.Array) -> None:
        plgpu.store(ref.at[self.index], values.astype(ref.dtype), mask=self.index < self.static.T)
