"""Weights in 8 or 4 bits with scales: how they are stored, and what they stand for.

    w[r, c] = q[r, c] * s[r // group, c]

for a matrix [R, C] whose R is contracted: the scales of a group of rows multiply what a product
sums over them, so no weight is rounded anew, and

    x W = sum_g s_g * (x_g q_g).

Symmetric, without zero points. `int8` holds -127..127, `int4` -7..7, `fp8` the finite numbers of
e4m3fn, as the published FP8 weights do (with a scale a column: their group is all of R), by their
codes: XLA's CPU backend would widen an array of float8 as a whole before it reads of it. Numbers in
e4m3fnuz, MI300X's own format, mean other values by the same codes, and are not taken for these.
`fp4` holds the numbers of e2m1, times two so that they are integers: 0, 1, 2, 3, 4, 6, 8, 12 of
either sign. With groups of 32 and powers of two as scales these are the numbers of MXFP4 (OCP
Microscaling Formats 1.0, sections 5.2 and 5.3.3).
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

KINDS = ("int8", "int4", "fp8", "fp4")
LARGEST = {"int8": 127.0, "int4": 7.0, "fp8": 448.0, "fp4": 12.0}
GROUP = {"int4": 128, "fp4": 32}  # rows that share a scale by default, at most; else all of them
OFFSET = 8  # what is added to an int4, so that it is stored as 1..15


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["values", "scales"],
    meta_fields=["bits", "group", "floating"],
)
@dataclasses.dataclass(frozen=True)
class Quantized:
    """Matrices [..., R, C], quantized along R. A pytree of two arrays; make one with `quantize`.

    Attributes:
      values: int8 [..., R, C]; or uint8, codes of e4m3fn; with 4 bits uint8 [..., R / 2, C], see
        `pack`.
      scales: [..., R / group, C] floating.
      bits: 8 or 4, of a value.
      group: rows that share a scale; R for one scale a column.
      floating: whether 4 bits are a code of e2m1; 8 bits say it by their dtype.
    """

    values: jax.Array
    scales: jax.Array
    bits: int
    group: int
    floating: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrices that are meant."""
        *batch, rows, columns = self.values.shape
        return (*batch, rows * (8 // self.bits), columns)

    @property
    def ndim(self) -> int:
        return self.values.ndim

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        if self.bits == 4:
            return "fp4" if self.floating else "int4"
        return "int8" if self.values.dtype == jnp.int8 else "fp8"

    @property
    def nbytes(self) -> int:
        """Of values and scales, as they are stored."""
        return sum(x.size * x.dtype.itemsize for x in (self.values, self.scales))

    def __getitem__(self, index) -> Quantized:
        """Some of the matrices, by leading axes."""
        return dataclasses.replace(self, values=self.values[index], scales=self.scales[index])

    def check(self, name: str) -> None:
        """Raises ValueError, with what would be right, unless the parts fit together."""
        stored = {8: ("int8", "uint8"), 4: ("uint8",)}
        if self.bits not in stored:
            raise ValueError(f"{name}: {self.bits} bits; accepted: 8 and 4")
        if self.values.dtype.name not in stored[self.bits]:
            accepted = " or ".join(stored[self.bits])
            raise ValueError(
                f"{name}: values of {self.bits} bits in {self.values.dtype}; accepted: {accepted} "
                "(float8_e4m3fn: see `of_e4m3fn`)"
            )
        rows = self.shape[-2]
        unit = 8 // self.bits
        if self.group < 1 or rows % self.group or self.group % unit:
            even = "even numbers" if unit == 2 else "numbers"
            raise ValueError(f"{name}: groups of {self.group}; accepted: {even} that divide {rows}")
        wanted = (*self.shape[:-2], rows // self.group, self.shape[-1])
        if self.scales.shape != wanted or not jnp.issubdtype(self.scales.dtype, jnp.floating):
            found = f"{self.scales.dtype} {self.scales.shape}"
            raise ValueError(f"{name}: scales {found}; expected floating {wanted}")

    def numbers(self) -> jax.Array:
        """The values one by one, [..., R, C]: int8, or float8_e4m3fn for `fp8`."""
        if self.bits == 4:
            return of_nibbles(unpack(self.values, self.group) + OFFSET, self.kind)
        if self.kind == "int8":
            return self.values
        return jax.lax.bitcast_convert_type(self.values, jnp.float8_e4m3fn)

    def dequantize(self, dtype: jnp.dtype | str = jnp.float32) -> jax.Array:
        """The matrices [..., R, C], each the product in float32 at least, rounded to `dtype`."""
        wide = jnp.promote_types(dtype, jnp.float32)
        scales = jnp.repeat(self.scales.astype(wide), self.group, axis=-2)
        return (self.numbers().astype(wide) * scales).astype(dtype)


def quantize(
    weights: jax.Array, kind: str, group: int | None = None, scales_dtype=jnp.float32
) -> Quantized:
    """Weights [..., R, C] rounded to the nearest, each group's largest at the end of the range.

    Args:
      kind: one of `KINDS`.
      group: rows that share a scale; by default all of them, of `int4` 128 and of `fp4` 32 at most.
      scales_dtype: of the scales; values are rounded with what it keeps of them.

    Raises:
      ValueError: another kind, or a group that does not divide R.
    """
    if kind not in KINDS:
        raise ValueError(f"quantize: no kind {kind!r}; accepted: {', '.join(KINDS)}")
    *batch, rows, columns = weights.shape
    if group is None:
        group = default_group(rows, kind)
    halves = kind in ("int4", "fp4")
    if group < 1 or rows % group or (halves and group % 2):
        even = "even numbers" if halves else "numbers"
        raise ValueError(f"quantize: groups of {group}; accepted: {even} that divide {rows}")
    wide = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
    grouped = wide.reshape(*batch, rows // group, group, columns)
    largest = LARGEST[kind]
    scales = jnp.max(jnp.abs(grouped), axis=-2) / largest
    scales = jnp.where(scales > 0, scales, 1).astype(scales_dtype)
    values = grouped / scales[..., None, :].astype(wide.dtype)
    values = jnp.clip(values, -largest, largest).reshape(weights.shape)
    if kind == "fp8":
        return of_e4m3fn(values.astype(jnp.float8_e4m3fn), scales)
    if kind == "fp4":
        return of_e2m1(_codes(values), scales)
    values = jnp.round(values).astype(jnp.int8)
    if kind == "int8":
        return Quantized(values, scales, 8, group)
    return Quantized(pack(values, group), scales, 4, group)


def default_group(rows: int, kind: str) -> int:
    """Rows that share a scale, if nothing else is asked for."""
    return math.gcd(rows, GROUP.get(kind, 0))


def of_e4m3fn(values: jax.Array, scales: jax.Array) -> Quantized:
    """Weights as they were published: float8_e4m3fn [..., R, C], scales [..., R / group, C].

    Raises:
      ValueError: values in another dtype, e4m3fnuz for one.
    """
    if values.dtype != jnp.float8_e4m3fn:
        raise ValueError(f"of_e4m3fn: values in {values.dtype}; accepted: float8_e4m3fn")
    codes = jax.lax.bitcast_convert_type(values, jnp.uint8)
    return Quantized(codes, scales, 8, values.shape[-2] // max(scales.shape[-2], 1))


def of_e2m1(codes: jax.Array, scales: jax.Array) -> Quantized:
    """Weights as they were published: codes of e2m1, integers 0..15 [..., R, C], and the scales
    [..., R / group, C] of *twice* their numbers."""
    group = codes.shape[-2] // max(scales.shape[-2], 1)
    packed = pack(codes.astype(jnp.int8) - OFFSET, group)
    return Quantized(packed, scales, 4, group, floating=True)


def _codes(values: jax.Array) -> jax.Array:
    """The codes of the numbers nearest to `values`, -12..12, in twice e2m1; ties to even."""
    size = jnp.abs(values)
    step = jnp.where(size < 4, 1, jnp.where(size < 8, 2, 4))
    size = jnp.round(size / step) * step
    code = jnp.where(size < 4, size, jnp.where(size < 8, size / 2 + 2, size / 4 + 4))
    return code.astype(jnp.int8) + jnp.where(values < 0, 8, 0).astype(jnp.int8)


def of_nibbles(stored: jax.Array, kind: str) -> jax.Array:
    """The numbers behind halves of bytes, 0..15, of `int4` or `fp4`; integers of the same dtype."""
    if kind == "int4":
        return stored - OFFSET
    code = stored & 7
    size = jnp.where(code < 4, code, jnp.where(code < 6, 2 * code - 4, 4 * code - 16))
    return jnp.where(stored >= 8, -size, size)


def pack(values: jax.Array, group: int) -> jax.Array:
    """int4 [..., R, C] to uint8 [..., R / 2, C]: two a byte, each offset by `OFFSET`.

    The low halves of a group's bytes are its first rows, the high halves its last ones: a kernel
    that has unpacked a group's bytes has two blocks of consecutive rows.
    """
    *batch, rows, columns = values.shape
    stored = (values.astype(jnp.int32) + OFFSET).astype(jnp.uint8)
    halves = stored.reshape(*batch, rows // group, 2, group // 2, columns)
    low, high = halves[..., 0, :, :], halves[..., 1, :, :]
    return (low | (high << 4)).reshape(*batch, rows // 2, columns)


def unpack(values: jax.Array, group: int) -> jax.Array:
    """The inverse of `pack`, int8."""
    *batch, rows, columns = values.shape
    packed = values.reshape(*batch, 2 * rows // group, group // 2, columns)
    halves = jnp.stack([packed & 15, packed >> 4], axis=-3)
    return halves.reshape(*batch, 2 * rows, columns).astype(jnp.int8) - OFFSET


def forward_only(name: str, function):
    """`function`, whose derivative is refused in words."""

    @jax.custom_vjp
    def run(*args):
        return function(*args)

    def refuse(*args):
        raise ValueError(
            f"{name}: nothing is differentiated through quantized weights; train with those that "
            "they were made from"
        )

    run.defvjp(refuse, refuse)
    return run
