"""Programs and kernels that the tests compile; the worker imports them by name."""

from __future__ import annotations

import functools
import os
import time

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from zaya_jax.aot import Program, timing


def shape(*sizes: int, dtype=jnp.bfloat16, sharding=None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=sharding)


def pallas(kernel, grid, out, **options):
    params = plgpu.CompilerParams(num_warps=options.pop("warps", 4), num_stages=1)
    return pl.pallas_call(kernel, grid=grid, out_shape=out, compiler_params=params, **options)


def tiled_matmul(a, b, tile: int, precision=None):
    """[M, K] @ [K, N] by tiles, the last ones masked."""
    (M, K), N = a.shape, b.shape[1]

    def matmul_kernel(a_ref, b_ref, out_ref):
        rows = pl.program_id(0) * tile + jnp.arange(tile)
        columns = pl.program_id(1) * tile + jnp.arange(tile)

        def step(k, total):
            inner = k * tile + jnp.arange(tile)
            left = plgpu.load(
                a_ref.at[rows[:, None], inner[None, :]],
                mask=(rows < M)[:, None] & (inner < K)[None, :],
                other=0,
            )
            right = plgpu.load(
                b_ref.at[inner[:, None], columns[None, :]],
                mask=(inner < K)[:, None] & (columns < N)[None, :],
                other=0,
            )
            return total + plgpu.dot(left, right, precision=precision)

        total = jax.lax.fori_loop(0, pl.cdiv(K, tile), step, jnp.zeros((tile, tile), jnp.float32))
        inside = (rows < M)[:, None] & (columns < N)[None, :]
        plgpu.store(out_ref.at[rows[:, None], columns[None, :]], total.astype(a.dtype), mask=inside)

    grid = (pl.cdiv(M, tile), pl.cdiv(N, tile))
    return pallas(matmul_kernel, grid, shape(M, N, dtype=a.dtype), name="matmul")(a, b)


def matmul(sizes=(256, 256, 256), tile=32, dtype="bfloat16", precision=None) -> Program:
    M, K, N = sizes
    run = functools.partial(tiled_matmul, tile=tile, precision=precision)
    return Program(run, (shape(M, K, dtype=dtype), shape(K, N, dtype=dtype)))


def copy_rows(x, lengths, tile: int = 16):
    """Copies the first lengths[b] rows of x[b] and doubles them, tile by tile."""
    B, S, D = x.shape

    def copy_kernel(x_ref, lengths_ref, out_ref):
        length = lengths_ref[pl.program_id(0)]

        def step(i, _):
            rows = i * tile + jnp.arange(tile)
            at = (rows[:, None], jnp.arange(D)[None, :])
            mask = (rows < length)[:, None]
            value = plgpu.load(x_ref.at[at], mask=mask, other=0)
            plgpu.store(out_ref.at[at], value * 2, mask=mask)
            return None

        jax.lax.fori_loop(0, pl.cdiv(length, tile), step, None)

    spec = pl.BlockSpec((None, S, D), lambda b: (b, 0, 0))
    return pallas(
        copy_kernel,
        (B,),
        shape(B, S, D, dtype=x.dtype),
        in_specs=[spec, pl.BlockSpec((B,), lambda b: (0,))],
        out_specs=spec,
        name="copy_rows",
    )(x, lengths)


def scanned() -> Program:
    """Four layers of a matmul, scanned."""

    def run(x, weights):
        return jax.lax.scan(lambda x, w: (tiled_matmul(x, w, 32), None), x, weights)[0]

    return Program(run, (shape(64, 64), shape(4, 64, 64)))


def product() -> Program:
    """XLA's own, of float32."""
    return Program(lambda a, b: a @ b, (shape(512, 512, dtype=jnp.float32),) * 2)


def repeated() -> Program:
    """As `timing` times a kernel and what XLA does before it."""
    call = timing.repeated(lambda a, b: tiled_matmul(a @ b, b, 32), 8)
    return Program(call, (shape(64, 64), shape(64, 64)))


def sharded(mesh) -> Program:
    """A product whose inner axis is cut over the mesh, so that it needs a reduction."""
    axis = mesh.axis_names[0]
    cut = functools.partial(jax.sharding.NamedSharding, mesh)
    rows, columns = cut(jax.P(axis, None)), cut(jax.P(None, axis))
    args = (shape(128, 1024, sharding=columns), shape(1024, 128, sharding=rows))
    return Program(lambda a, b: a @ b, args)


def donating() -> Program:
    return Program(lambda x: x + 1, (shape(1024, dtype=jnp.float32),), donate=(0,))


def falls() -> Program:
    os._exit(7)


def sleeps() -> Program:
    time.sleep(60)
    raise AssertionError


def raises() -> Program:
    raise ValueError("this program is not one")
