"""Experts that were published quantized: which tensors hold them, and what they mean.

| as published | values | scales |
|---|---|---|
| FP8-Experts (compressed-tensors, per channel) | `NAME` F8_E4M3 [E, out, in] | `NAME.weight_scale` [E, out, 1] |
| MXFP4-Experts (OCP Microscaling Formats 1.0) | `NAME` or `NAME.weight_packed` U8 [E, out, in / 2] | `NAME.weight_scale` U8 [E, out, in / 32] |
| MXFP4 as transformers writes it for gpt-oss | `NAME_blocks` U8 [E, out, in / 32, 16] | `NAME_scales` U8 [E, out, in / 32] |

NAME is `model.layers.N.mlp.experts.gate_up_proj` or `down_proj`; all other tensors are those of the
native layout. A weight is its e4m3fn number times its row's scale; in MXFP4, its e2m1 number, the
low half of a byte first, times 2^(scale - 127) of its block of 32 inputs.

Sums run over the inputs, so a weight is kept for inference with the scale that it was given: nothing
is rounded anew, and the numbers are those of the files.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from pallas_kernels.quantized import Quantized, of_e2m1
from zaya_jax.hf.names import Place
from zaya_jax.hf.safetensors_io import Entry, Reader

BLOCK = 32  # inputs that share a scale of MXFP4
BIAS = 127  # of its exponents
NAN = 255  # an exponent that is none
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FP8, U8 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(np.uint8)
# Behind the name of the native tensor.
VALUES, SCALES = ("", ".weight_packed", "_blocks"), (".weight_scale", "_scales")


class Packed(NamedTuple):
    """A stack of experts in a file.

    kind: `fp8` or `mxfp4`.
    values, scales: names of its two tensors.
    """

    kind: str
    values: str
    scales: str


def find(entries: Mapping[str, Entry], table: Mapping[str, Place]) -> dict[str, Packed]:
    """The stacks of experts that are quantized, by the native name of their tensor."""
    found = {}
    for name, place in table.items():
        if not place.stacked or place.apart:
            continue
        values = next((n for n in (name + v for v in VALUES) if n in entries), None)
        scales = next((n for n in (name + s for s in SCALES) if n in entries), None)
        if values is None or scales is None or entries[values].dtype not in (FP8, U8):
            continue
        kind = "fp8" if entries[values].dtype == FP8 else "mxfp4"
        found[name] = Packed(kind, values, scales)
    return found


def problems(packed: Packed, entries: Mapping[str, Entry], shape: tuple[int, ...]) -> Iterator[str]:
    """What is wrong with the tensors of a stack that stands for [E, out, in] = `shape`."""
    experts, rows, width = shape
    values, scales = entries[packed.values], entries[packed.scales]

    def expect(name: str, entry: Entry, *accepted: tuple[int, ...]) -> Iterator[str]:
        if entry.shape not in accepted:
            yield f"{name} {list(entry.shape)}, expected {list(accepted[0])}"

    if packed.kind == "fp8":
        yield from expect(packed.values, values, shape)
        yield from expect(packed.scales, scales, (experts, rows, 1), (experts, rows))
        if scales.dtype.name not in ("float32", "bfloat16", "float16"):
            yield f"{packed.scales} in {scales.dtype.name}, expected floating point"
        return
    if width % BLOCK:
        yield f"{packed.values}: {width} inputs, which blocks of {BLOCK} do not divide"
        return
    blocks = width // BLOCK
    flat, apart = (experts, rows, width // 2), (experts, rows, blocks, BLOCK // 2)
    yield from expect(packed.values, values, flat, apart)
    yield from expect(packed.scales, scales, (experts, rows, blocks))
    if scales.dtype != U8:
        yield f"{packed.scales} in {scales.dtype.name}, expected uint8 (E8M0)"


def plain(reader: Reader, packed: Packed, expert: int) -> np.ndarray:
    """The weights of one expert, float32 [out, in]."""
    values, scales = _of_expert(reader, packed, expert)
    if packed.kind == "fp8":
        return values.astype(np.float32) * scales.astype(np.float32)
    numbers = E2M1[values & 7] * np.where(values >= 8, np.float32(-1), np.float32(1))
    exponents = scales.astype(np.int32) - BIAS
    factors = np.where(scales == NAN, np.float32(np.nan), np.ldexp(np.float32(1), exponents))
    return numbers * np.repeat(factors.astype(np.float32), BLOCK, axis=-1)


def kept(reader: Reader, packed: Packed, experts: int) -> Quantized:
    """All experts as ops read them, [E, in, out]; one at a time is converted."""
    parts = [_kept(*_of_expert(reader, packed, i), packed.kind) for i in range(experts)]
    values, scales = (jnp.stack([part[i] for part in parts]) for i in range(2))
    if packed.kind == "fp8":
        return Quantized(values, scales, 8, values.shape[1])
    return Quantized(values, scales, 4, BLOCK, floating=True)


def damaged(reader: Reader, packed: Packed) -> bool:
    """Whether a value or a scale is no number."""
    scales = reader.read(packed.scales)
    if packed.kind == "mxfp4":
        return bool((scales == NAN).any())
    if not np.isfinite(scales.astype(np.float32)).all():
        return True
    return any(bool(((codes.view(np.uint8) & 0x7F) == 0x7F).any()) for codes in
               reader.read(packed.values))  # fmt: skip


def _of_expert(reader: Reader, packed: Packed, expert: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of fp8, or codes of e2m1, [out, in]; and their scales, [out, 1] or [out, in / 32]."""
    values, scales = reader.read(packed.values)[expert], reader.read(packed.scales)[expert]
    if packed.kind == "fp8":
        return values, scales.reshape(len(values), 1)
    packs = values.reshape(len(values), -1)
    codes = np.stack([packs & 15, packs >> 4], axis=-1)
    return codes.reshape(len(values), -1), scales


def _kept(values: np.ndarray, scales: np.ndarray, kind: str):
    """Values and scales of `Quantized` for one expert."""
    if kind == "fp8":
        codes = np.ascontiguousarray(values.view(np.uint8).T)
        return jnp.asarray(codes), jnp.asarray(scales.astype(np.float32).T)
    # Twice an e2m1 number is an integer: half the scale makes up for it. Powers of two are exact.
    halves = np.ldexp(np.float32(1), scales.astype(np.int32) - BIAS - 1)
    found = of_e2m1(jnp.asarray(values.T), jnp.asarray(halves.T, jnp.bfloat16))
    return found.values, found.scales
