"""Three launches an iteration for AMD and NVIDIA GPUs; a symmetric product is one triangle's tiles.

| kernel | a program owns | walks over | writes |
|---|---|---|---|
| `newton_schulz_gram` | a tile of A's lower triangle | n | A = X X^T, tile and mirror image |
| `newton_schulz_factor` | a tile of F's lower triangle | m | F = a I + b A + c A A, the same |
| `newton_schulz_apply` | a tile of X | m | F X |

The grid of the first two is a table of the triangle's tiles, m / block (m / block + 1) / 2 of them,
by the matrices of the batch. A is read as its rows only: A A = A A^T, both operands [rows, depth].

Matrices are padded with zeros to whole tiles, so that no load or store is masked: the padding stays
zero, for a I + b A + c A A couples none of it to the rest.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels import interpret, tuned
from pallas_kernels.dots import dot
from pallas_kernels.newton_schulz.reference import COEFFICIENTS, unit, wide_dtype

PRODUCTS = ("bfloat16", "float32")
UNIT = 16  # rows and columns of the least matrix instruction


def supports(x, *, iterations=5, products) -> str | None:
    """What a call has that the kernels lack; None if nothing."""
    del iterations
    if jnp.dtype(products).name not in PRODUCTS:
        return f"products in {' or '.join(PRODUCTS)}, not {jnp.dtype(products)}"
    if x.size == 0:
        return f"matrices with something in them, not {x.shape}"
    return None


def newton_schulz(x: jax.Array, *, iterations: int = 5, products) -> jax.Array:
    """See the package."""
    products, shape, result = jnp.dtype(products), x.shape, wide_dtype(x.dtype)
    x = x.reshape(-1, *shape[-2:])
    tall = shape[-2] > shape[-1]
    x = unit(x.mT if tall else x).astype(products)
    m, n = x.shape[1:]
    x = jnp.pad(x, ((0, 0), (0, _padded(m) - m), (0, _padded(n) - n)))

    def step(_: int, x: jax.Array) -> jax.Array:
        gram = _symmetric("gram", x)
        return _apply(_symmetric("factor", gram), x)

    x = lax.fori_loop(0, iterations, step, x)[:, :m, :n].astype(result)
    return (x.mT if tall else x).reshape(shape)


def _padded(size: int) -> int:
    """The next size whose tiles are all whole: of 128 and a power of two below it."""
    tile = min(128, max(UNIT, pl.next_power_of_2(size)))
    return -(-size // tile) * tile


def _cut(size: int, most: int) -> int:
    """The largest power of two, at most `most` (itself one), that cuts `size` evenly."""
    return min(size & -size, most)


def _symmetric(kernel: str, x: jax.Array) -> jax.Array:
    """[N, m, m]: A = X X^T of `gram`, or F = a I + b A + c A A of `factor` with x = A."""
    (matrices, m, depth), settings = x.shape, tuned.settings("newton_schulz", kernel, x.dtype)
    block, deep = _cut(m, settings["block"]), _cut(depth, settings["depth"])
    pairs = np.stack(np.tril_indices(m // block), axis=1).astype(np.int32)
    a, b, c = COEFFICIENTS

    def program(pairs_ref, x_ref, out_ref):
        tile, matrix = pl.program_id(0), pl.program_id(1)
        row, column = pairs_ref[tile, 0], pairs_ref[tile, 1]
        rows, columns = pl.ds(row * block, block), pl.ds(column * block, block)

        def add(i, total):
            at = pl.ds(i * deep, deep)
            return total + dot(x_ref[matrix, rows, at], x_ref[matrix, columns, at], 1, 1)

        total = lax.fori_loop(0, depth // deep, add, jnp.zeros((block, block), jnp.float32))
        if kernel == "factor":
            across = lax.broadcasted_iota(jnp.int32, (block, block), 1)
            down = lax.broadcasted_iota(jnp.int32, (block, block), 0)
            diagonal = (row == column) & (across == down)
            total = c * total + b * x_ref[matrix, rows, columns].astype(jnp.float32)
            total = total + jnp.where(diagonal, a, 0.0)
        total = total.astype(out_ref.dtype)
        out_ref[matrix, rows, columns] = total

        @pl.when(row != column)
        def mirror():
            out_ref[matrix, columns, rows] = total.T

    return pl.pallas_call(
        program,
        grid=(len(pairs), matrices),
        out_shape=jax.ShapeDtypeStruct((matrices, m, m), x.dtype),
        compiler_params=tuned.compiler_params(
            settings, [block * deep * x.dtype.itemsize] * 2, early=x.dtype == jnp.float32
        ),
        interpret=interpret.enabled(),
        name=f"newton_schulz_{kernel}",
    )(jnp.asarray(pairs), x)


def _apply(factor: jax.Array, x: jax.Array) -> jax.Array:
    """F X of [N, m, m] and [N, m, n]."""
    (matrices, m, n), settings = x.shape, tuned.settings("newton_schulz", "apply", x.dtype)
    tall, wide = _cut(m, settings["rows"]), _cut(n, settings["columns"])
    deep = _cut(m, settings["depth"])

    def program(factor_ref, x_ref, out_ref):
        rows, columns = pl.ds(pl.program_id(1) * tall, tall), pl.ds(pl.program_id(0) * wide, wide)
        matrix = pl.program_id(2)

        def add(i, total):
            at = pl.ds(i * deep, deep)
            return total + dot(factor_ref[matrix, rows, at], x_ref[matrix, at, columns])

        total = lax.fori_loop(0, m // deep, add, jnp.zeros((tall, wide), jnp.float32))
        out_ref[matrix, rows, columns] = total.astype(out_ref.dtype)

    return pl.pallas_call(
        program,
        grid=(n // wide, m // tall, matrices),
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=tuned.compiler_params(
            settings,
            [side * deep * x.dtype.itemsize for side in (tall, wide)],
            early=x.dtype == jnp.float32,
        ),
        interpret=interpret.enabled(),
        name="newton_schulz_apply",
    )(factor, x)
