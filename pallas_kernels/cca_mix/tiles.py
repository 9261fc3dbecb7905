"""What the kernels of the mix share: where a program's tokens stand and how it reads their latents.

Rows of a batch lie one behind the other, T = B * S tokens. A program takes `tokens` consecutive
ones, whatever row they belong to, so that decoding (S = 1) fills its tiles with the batch. A latent
d tokens back is read again from memory at d rows less: the first-level cache has it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import interpret, tuned
from pallas_kernels.dots import dot

MIN_TOKENS = 16  # the least rows of a matrix instruction


@dataclasses.dataclass(frozen=True)
class Static:
    """What is known when a kernel is built; hashable, as custom derivatives want it.

    S: tokens of a row. H, K, C: query heads, kv heads and channels of a head. K0, K1: taps of the
    two convolutions. half: half of the rotated channels. dtype: of the latents.
    """

    T: int
    S: int
    H: int
    K: int
    C: int
    K0: int
    K1: int
    half: int
    dtype: Any
    norm_dtype: Any
    with_state: bool
    interpret: bool

    @classmethod
    def of(cls, q, k, weights, cos, state, norm_dtype) -> Static:
        (K0, _), (K1, heads, C, _) = weights.depthwise.shape, weights.grouped.shape
        B, S, _ = q.shape
        K = k.shape[-1] // C
        return cls(
            T=B * S,
            S=S,
            H=heads - K,
            K=K,
            C=C,
            K0=K0,
            K1=K1,
            half=cos.shape[-1],
            dtype=q.dtype,
            norm_dtype=jnp.dtype(norm_dtype),
            with_state=state is not None,
            interpret=interpret.enabled(),
        )

    @property
    def G(self) -> int:
        """Query heads that share a kv head."""
        return self.H // self.K

    @property
    def past(self) -> int:
        """Tokens back that a token's latents depend on."""
        return self.K0 + self.K1 - 2

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """(first channel, width) of the parts in which a head is computed.

        RoPE pairs the first part with the second, and powers of two are all that a kernel can
        hold: 128 channels of which 64 are rotated are 32 + 32 + 64.
        """
        if self.half == 0:
            return ((0, self.C),)
        parts = [(0, self.half), (self.half, self.half)]
        while sum(parts[-1]) < self.C:
            parts.append((sum(parts[-1]), sum(parts[-1])))
        return tuple(parts)

    def tap_tile(self, chunk: int) -> int:
        """Elements of the largest tile of the grouped weights that `convolve` multiplies."""
        return min(chunk, self.C) * max(width for _, width in self.parts)

    @property
    def least_square(self) -> float:
        """To which the L2 norm clamps the square of a length."""
        return float(jnp.finfo(self.norm_dtype).eps) ** 2

    def tokens(self, settings: Mapping[str, int]) -> int:
        """Tokens of a tile."""
        return max(MIN_TOKENS, min(settings["tokens"], pl.next_power_of_2(self.T)))

    def call(
        self,
        kernel,
        settings: Mapping[str, int],
        grid: tuple[int, ...],
        outputs,
        in_place: Mapping[int, int] | None = None,
        tile: int = 0,
    ):
        """A launch that sees all of its arrays and picks its own part of them; `in_place` tells
        which output takes the place of which operand, `tile` how many elements the largest tile
        has that is loaded to be multiplied."""
        return pl.pallas_call(
            kernel,
            grid=grid,
            out_shape=outputs,
            compiler_params=tuned.compiler_params(settings, own=tile * self.dtype.itemsize),
            input_output_aliases=dict(in_place or {}),
            interpret=self.interpret,
        )


@dataclasses.dataclass(frozen=True)
class Tile:
    """The tokens of a tile, [tokens] each: index among all, whether it exists, row, place in it,
    position in the document."""

    index: jax.Array
    inside: jax.Array
    row: jax.Array
    place: jax.Array
    positions: jax.Array

    @classmethod
    def of(cls, static: Static, first, tokens: int, positions_ref) -> Tile:
        index = first + jnp.arange(tokens, dtype=jnp.int32)
        inside = index < static.T
        positions = plgpu.load(positions_ref.at[index], mask=inside, other=-1)
        return cls(index, inside, index // static.S, index % static.S, positions)

    def only(self, condition) -> Tile:
        """The same tile, of which nothing is read unless the scalar `condition` holds."""
        return dataclasses.replace(self, inside=self.inside & condition)

    def load(self, ref, column, width: int, mask: jax.Array | None = None, offset: int = 0):
        """[tokens, width] of a [T, ...] array from `column` on, `offset` tokens on; else zeros."""
        rows, columns, inside = self._at(column, width, mask, offset)
        return plgpu.load(ref.at[rows, columns], mask=inside, other=0)

    def load_parts(self, static: Static, ref, column, dtype) -> list[jax.Array]:
        """A head from `column` on, in parts."""
        return [self.load(ref, column + at, width).astype(dtype) for at, width in static.parts]

    def store_parts(self, static: Static, ref, column, parts: list[jax.Array]) -> None:
        for (at, _), part in zip(static.parts, parts, strict=True):
            self.store(ref, column + at, part)

    def store(self, ref, column, values: jax.Array) -> None:
        rows, columns, inside = self._at(column, values.shape[1], None, 0)
        plgpu.store(ref.at[rows, columns], values.astype(ref.dtype), mask=inside)

    def _at(self, column, width: int, mask, offset: int):
        shape = (self.index.shape[0], width)
        rows = jnp.broadcast_to((self.index + offset)[:, None], shape)
        columns = jnp.broadcast_to(column + jnp.arange(width, dtype=jnp.int32)[None], shape)
        inside = self.inside if mask is None else self.inside & mask
        return rows, columns, jnp.broadcast_to(inside[:, None], shape)

    def tap(self, static: Static, ref, column, width: int, d: int, state_ref=None, state_column=0):
        """[tokens, width] latents d tokens back; zeros where the document does not reach so far."""
        reaches = self.positions >= d
        here = self.load(ref, column, width, reaches & (self.place >= d), -d)
        if not static.with_state or d == 0:
            return here
        # The tokens before the row: the last of `past` is the one just before it.
        shape = (self.index.shape[0], width)
        _, columns, mask = self._at(state_column, width, reaches & (self.place < d), 0)
        rows = jnp.broadcast_to(self.row[:, None], shape)
        before = jnp.broadcast_to((static.past + self.place - d)[:, None], shape)
        return here + plgpu.load(state_ref.at[rows, before, columns], mask=mask, other=0)

    def load_vector(self, ref) -> jax.Array:
        """[tokens] of a [T] array, zeros beyond its end."""
        zero = jnp.zeros((), ref.dtype)
        return plgpu.load(ref.at[self.index], mask=self.inside, other=zero)

    def of_rows(self, rows: jax.Array) -> Tile:
        """The same tokens, whose states are those of `rows` [tokens]."""
        return dataclasses.replace(self, row=rows)

    def put(self, static: Static, to, slot, ref, column, values: jax.Array) -> None:
        """Channels of keys or values, from `column` of the joined heads on, into a cache."""
        shape, C = values.shape, static.C
        rows, slots = (jnp.broadcast_to(x[:, None], shape) for x in (to, slot))
        channel = jnp.broadcast_to(column % C + jnp.arange(shape[1], dtype=jnp.int32)[None], shape)
        mask = jnp.broadcast_to(self.inside[:, None], shape)
        place = ref.at[rows, jnp.full_like(rows, column // C), slots, channel]
        plgpu.store(place, values.astype(ref.dtype), mask=mask)

    def push(
        self, static: Static, new_ref, state_ref, to, ref, column, state_column, live: jax.Array
    ) -> None:
        """Puts the latents of a head, one token a row, at the end of the rows' states, whose oldest
        go, and the states to rows `to`; a row that is not `live` keeps its own."""
        _, columns, inside = self._at(state_column, static.C, None, 0)
        rows, to = (jnp.broadcast_to(x[:, None], columns.shape) for x in (self.row, to))
        places = [jnp.full_like(rows, place) for place in range(static.past)]
        old = [plgpu.load(state_ref.at[rows, at, columns], mask=inside, other=0) for at in places]
        pushed = [*old[1:], self.load(ref, column, static.C)]
        for at, before, after in zip(places, old, pushed, strict=True):
            value = jnp.where(live[:, None], after, before)
            plgpu.store(new_ref.at[to, at, columns], value, mask=inside)

    def push_value(
        self, static: Static, new_ref, state_ref, to, ref, column, live: jax.Array
    ) -> None:
        """The same for the delayed half of a value."""
        _, columns, inside = self._at(column, static.C // 2, None, 0)
        rows, to = (jnp.broadcast_to(x[:, None], columns.shape) for x in (self.row, to))
        old = plgpu.load(state_ref.at[rows, columns], mask=inside, other=0)
        value = jnp.where(live[:, None], self.load(ref, column, static.C // 2), old)
        plgpu.store(new_ref.at[to, columns], value, mask=inside)

    def delayed_value(self, static: Static, ref, column, state_ref):
        """[tokens, C / 2] delayed half of the token before, zeros at a document's start."""
        width, reaches = static.C // 2, self.positions >= 1
        here = self.load(ref, column, width, reaches & (self.place >= 1), -1)
        if not static.with_state:
            return here
        shape = (self.index.shape[0], width)
        _, columns, mask = self._at(column, width, reaches & (self.place < 1), 0)
        rows = jnp.broadcast_to(self.row[:, None], shape)
        return here + plgpu.load(state_ref.at[rows, columns], mask=mask, other=0)


def convolve(
    static: Static, tile: Tile, weights, head, chunk: int, ref, column, state_ref
) -> list[jax.Array]:
    """The parts of both convolutions of one head, rounded as the definition rounds.

    A tap that its document does not have is zero, so what is left of stage one there is its bias,
    which is what stage two reads in place of a tap of its own that does not exist: the joint pad
    needs no case of its own.

    Args:
      weights: refs of `Weights`, in the latents' dtype.
      head: index among the joined heads, q heads first.
      chunk: channels of stage one at a time: as an operand of a matrix product, a wider stage one
        and its weights would take all registers.
      ref, column: where the latents of the head are.
    """
    depthwise, depthwise_bias, grouped, grouped_bias = weights[:4]
    chunk = min(chunk, static.C)
    tokens = tile.index.shape[0]

    def step(i, parts):
        first = i * chunk
        at = head * static.C + first
        taps = [
            tile.tap(static, ref, column + first, chunk, d, state_ref, at).astype(jnp.float32)
            for d in range(static.past + 1)
        ]
        bias = depthwise_bias[pl.ds(at, chunk)].astype(jnp.float32)[None]
        for d in range(static.K1):
            stage1 = bias
            for e in range(static.K0):
                scale = depthwise[static.K0 - 1 - e, pl.ds(at, chunk)].astype(jnp.float32)
                stage1 = stage1 + scale[None] * taps[d + e]
            stage1 = stage1.astype(static.dtype)
            tap = static.K1 - 1 - d
            parts = tuple(
                part + dot(stage1, grouped[tap, head, pl.ds(first, chunk), pl.ds(*columns)])
                for part, columns in zip(parts, static.parts, strict=True)
            )
        return parts

    start = tuple(jnp.zeros((tokens, width), jnp.float32) for _, width in static.parts)
    parts = jax.lax.fori_loop(0, static.C // chunk, step, start)
    biases = (grouped_bias[pl.ds(head * static.C + at, width)] for at, width in static.parts)
    return [
        (part + bias.astype(jnp.float32)[None]).astype(static.dtype)
        for part, bias in zip(parts, biases, strict=True)
    ]


def rotated(parts: list[jax.Array], cosine: jax.Array, sine: jax.Array) -> list[jax.Array]:
    """RoPE of a head in parts: the first two are turned, the others passed on."""
    if len(parts) == 1:
        return parts
    first, second, *rest = parts
    return [first * cosine - second * sine, second * cosine + first * sine, *rest]


def row_sums(parts: list[jax.Array]) -> jax.Array:
    """[tokens, 1] sum over all channels, in float32."""
    sums = [jnp.sum(part.astype(jnp.float32), axis=1, keepdims=True) for part in parts]
    return functools.reduce(jnp.add, sums)
