"""Residual scaling, sum and RMSNorm of a row in one pass over it, for AMD and NVIDIA GPUs.

A program walks over a few rows, `rows` at a time; the parameters stay in its registers. The
forward pass reads the mixer and the stream once and writes the new stream and its norm once. The
backward pass recomputes the new stream from the same two inputs, so that nothing but the op's
arguments is kept for it.

Gradients of parameters are sums over all rows: each program writes its share, XLA adds the shares.
No atomics, so that the same call gives the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import interpret, tuned
from pallas_kernels.residual_norm.reference import merge

DTYPES = (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16))
MAX_WIDTH = 4096
"""Channels of a row, which one program holds in registers with its parameters: twice as many would
be more than a thread of an H100 has. XLA takes wider ones."""
PROGRAMS = 1024  # enough for every core of either GPU; above it, programs take more rows

Scales = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


class _Static(NamedTuple):
    """What is known when the kernel is built."""

    eps: float
    merge_dtype: Any
    stream_dtype: Any
    norm_dtype: Any
    interpret: bool
    forward: tuple[tuple[str, int], ...]
    backward: tuple[tuple[str, int], ...]


def supports(mixer, stream, scales, norm_weight, **options) -> str | None:
    """What a call has that the kernel lacks; None if nothing."""
    arrays = [mixer, stream, *(scales or ()), *(() if norm_weight is None else (norm_weight,))]
    dtypes = [*(x.dtype for x in arrays), *(options[f"{x}_dtype"] for x in _ROLES)]
    for dtype in dtypes:
        if jnp.dtype(dtype) not in DTYPES:
            return f"dtypes float32 and bfloat16, not {jnp.dtype(dtype)}"
    if mixer.shape[-1] > MAX_WIDTH:
        return f"rows of at most {MAX_WIDTH} channels, not {mixer.shape[-1]}"
    return None


_ROLES = ("merge", "stream", "norm")


def residual_norm(
    mixer: jax.Array,
    stream: jax.Array,
    scales: Scales | None,
    norm_weight: jax.Array | None,
    *,
    eps: float,
    merge_dtype,
    stream_dtype,
    norm_dtype,
) -> tuple[jax.Array, jax.Array | None]:
    """See the package."""
    forward, backward = (tuned.settings("residual_norm", k) for k in ("forward", "backward"))
    static = _Static(
        float(eps),
        jnp.dtype(merge_dtype),
        jnp.dtype(stream_dtype),
        jnp.dtype(norm_dtype),
        interpret.enabled(),
        tuple(forward.items()),
        tuple(backward.items()),
    )
    D = mixer.shape[-1]
    out, normed = _apply(static, mixer.reshape(-1, D), stream.reshape(-1, D), scales, norm_weight)
    return out.reshape(mixer.shape), None if normed is None else normed.reshape(mixer.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(static: _Static, mixer, stream, scales, norm_weight):
    return _forward(static, mixer, stream, scales, norm_weight)[0]


class _Tiles(NamedTuple):
    """How rows are dealt out: a program takes `steps` times `rows` rows of `columns` channels."""

    rows: int
    steps: int
    columns: int
    programs: int

    @classmethod
    def of(cls, T: int, D: int, settings: Mapping[str, int]) -> _Tiles:
        share = min(settings["rows"] * settings["steps"], pl.next_power_of_2(pl.cdiv(T, PROGRAMS)))
        rows = min(settings["rows"], share)
        return cls(rows, share // rows, pl.next_power_of_2(D), pl.cdiv(T, share))

    def matrix(self) -> pl.BlockSpec:
        """The rows of a program in a [T, D] array."""
        return pl.BlockSpec((self.rows * self.steps, self.columns), lambda i: (i, 0))

    def vector(self) -> pl.BlockSpec:
        """A whole [D] array."""
        return pl.BlockSpec((self.columns,), lambda i: (0,))

    def mask(self, program, step, T: int, D: int) -> jax.Array:
        """[rows, columns]: which entries of a program's step exist."""
        shape = (self.rows, self.columns)
        row = (program * self.steps + step) * self.rows + jax.lax.broadcasted_iota(
            jnp.int32, shape, 0
        )
        return (row < T) & (jax.lax.broadcasted_iota(jnp.int32, shape, 1) < D)

    def load_vectors(self, refs, D: int) -> list[jax.Array]:
        inside = jnp.arange(self.columns) < D
        return [plgpu.load(ref, mask=inside, other=0) for ref in refs]


def _call(kernel, tiles: _Tiles, settings: Mapping[str, int], interpreted: bool, **specs):
    return pl.pallas_call(
        kernel,
        grid=(tiles.programs,),
        compiler_params=tuned.compiler_params(settings),
        interpret=interpreted,
        **specs,
    )


def _forward(static: _Static, mixer, stream, scales, norm_weight):
    (T, D), settings = mixer.shape, dict(static.forward)
    tiles = _Tiles.of(T, D, settings)
    vectors = [*(scales or ()), *(() if norm_weight is None else (norm_weight,))]

    def residual_norm_forward(mixer_ref, stream_ref, *refs):
        values = tiles.load_vectors(refs[: len(vectors)], D)
        out_ref, *normed_ref = refs[len(vectors) :]
        learned = tuple(values[:4]) if scales is not None else None
        program = pl.program_id(0)

        def step(i, carry):
            at, mask = pl.ds(i * tiles.rows, tiles.rows), tiles.mask(program, i, T, D)
            mixed = plgpu.load(mixer_ref.at[at, :], mask=mask, other=0)
            passed = plgpu.load(stream_ref.at[at, :], mask=mask, other=0)
            out = merge(mixed, passed, learned, static.merge_dtype, static.stream_dtype)
            plgpu.store(out_ref.at[at, :], out, mask=mask)
            if normed_ref:
                unit, _ = _normalise(out, mask, D, static)
                weighted = values[-1].astype(static.norm_dtype) * unit.astype(static.norm_dtype)
                normed = weighted.astype(normed_ref[0].dtype)
                plgpu.store(normed_ref[0].at[at, :], normed, mask=mask)
            return carry

        jax.lax.fori_loop(0, tiles.steps, step, 0)

    shapes = [jax.ShapeDtypeStruct((T, D), static.stream_dtype)]
    if norm_weight is not None:
        shapes.append(jax.ShapeDtypeStruct((T, D), mixer.dtype))
    outs = _call(
        residual_norm_forward,
        tiles,
        settings,
        static.interpret,
        in_specs=[tiles.matrix()] * 2 + [tiles.vector()] * len(vectors),
        out_specs=[tiles.matrix()] * len(shapes),
        out_shape=shapes,
    )(mixer, stream, *vectors)
    out, normed = outs if norm_weight is not None else (*outs, None)
    return (out, normed), (mixer, stream, scales, norm_weight)


def _normalise(x, mask, D: int, static: _Static):
    """x / rms(x) and 1 / rms(x), in float32, of rows whose columns may be padded."""
    x = x.astype(static.norm_dtype).astype(jnp.float32)
    square = jnp.sum(jnp.where(mask, x * x, 0), axis=1, keepdims=True)
    inverse = jax.lax.rsqrt(square / D + static.eps)
    return x * inverse, inverse


def _backward(static: _Static, kept, cotangents):
    mixer, stream, scales, norm_weight = kept
    (T, D), settings = mixer.shape, dict(static.backward)
    tiles = _Tiles.of(T, D, settings)
    vectors = [*(scales or ()), *(() if norm_weight is None else (norm_weight,))]
    gradients = [g for g in cotangents if g is not None]
    sums = 3 * (scales is not None) + (norm_weight is not None)

    def residual_norm_backward(mixer_ref, stream_ref, *refs):
        values = tiles.load_vectors(refs[: len(vectors)], D)
        gradient_refs = refs[len(vectors) : len(vectors) + len(gradients)]
        d_mixer_ref, d_stream_ref, *shares_ref = refs[len(vectors) + len(gradients) :]
        learned = tuple(values[:4]) if scales is not None else None
        program = pl.program_id(0)

        def step(i, totals):
            at, mask = pl.ds(i * tiles.rows, tiles.rows), tiles.mask(program, i, T, D)

            def load(ref):
                return plgpu.load(ref.at[at, :], mask=mask, other=0)

            mixed, passed = load(mixer_ref), load(stream_ref)
            g = load(gradient_refs[0]).astype(jnp.float32)
            terms = []
            if norm_weight is not None:
                out = merge(mixed, passed, learned, static.merge_dtype, static.stream_dtype)
                unit, inverse = _normalise(out, mask, D, static)
                g_normed = load(gradient_refs[1]).astype(jnp.float32)
                g_unit = g_normed * values[-1].astype(jnp.float32)
                along = jnp.sum(jnp.where(mask, g_unit * unit, 0), axis=1, keepdims=True) / D
                g = g + inverse * (g_unit - unit * along)
                terms = [g_normed * unit]
            d_mixer = d_stream = g
            if learned is not None:
                mixer_scale, mixer_bias, stream_scale, stream_bias = (
                    x.astype(jnp.float32) for x in learned
                )
                d_mixer, d_stream = g * mixer_scale, g * stream_scale
                mixed = mixed.astype(jnp.float32) + mixer_bias
                passed = passed.astype(jnp.float32) + stream_bias
                terms = [g, g * mixed, g * passed, *terms]
            plgpu.store(d_mixer_ref.at[at, :], d_mixer.astype(d_mixer_ref.dtype), mask=mask)
            plgpu.store(d_stream_ref.at[at, :], d_stream.astype(d_stream_ref.dtype), mask=mask)
            return tuple(
                total + jnp.sum(jnp.where(mask, term, 0), axis=0)
                for total, term in zip(totals, terms, strict=True)
            )

        start = (jnp.zeros((tiles.columns,), jnp.float32),) * sums
        totals = jax.lax.fori_loop(0, tiles.steps, step, start)
        for j, total in enumerate(totals):
            inside = jnp.arange(tiles.columns)[None] < D
            plgpu.store(shares_ref[0].at[pl.ds(j, 1), :], total[None], mask=inside)

    shapes = [jax.ShapeDtypeStruct((T, D), x.dtype) for x in (mixer, stream)]
    specs = [tiles.matrix()] * 2
    if sums:
        shapes.append(jax.ShapeDtypeStruct((tiles.programs, sums, D), jnp.float32))
        specs.append(pl.BlockSpec((None, sums, tiles.columns), lambda i: (i, 0, 0)))
    d_mixer, d_stream, *shares = _call(
        residual_norm_backward,
        tiles,
        settings,
        static.interpret,
        in_specs=[tiles.matrix()] * 2
        + [tiles.vector()] * len(vectors)
        + [tiles.matrix()] * len(gradients),
        out_specs=specs,
        out_shape=shapes,
    )(mixer, stream, *vectors, *gradients)

    totals = list(jnp.sum(shares[0], axis=0)) if sums else []
    d_weight = None if norm_weight is None else totals.pop().astype(norm_weight.dtype)
    d_scales = None
    if scales is not None:
        g, with_mixer, with_stream = totals
        by_field = (with_mixer, g * scales[0], with_stream, g * scales[2])
        d_scales = tuple(d.astype(p.dtype) for d, p in zip(by_field, scales, strict=True))
    return d_mixer, d_stream, d_scales, d_weight


_apply.defvjp(_forward, _backward)
