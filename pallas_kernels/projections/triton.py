"""All projections in one launch for AMD and NVIDIA GPUs.

The columns of all matrices, one matrix behind the other, are cut into blocks; a program owns a
block and a tile of tokens, and reads its matrix in place. Each weight is read once for a tile: with
few tokens this is bound by memory, and there is one tile.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels import interpret, tuned
from pallas_kernels.dots import dot

DTYPES = ("bfloat16", "float32")
MOST = 256  # tokens
UNIT = 16  # rows and columns of the least matrix instruction


def supports(x, weights) -> str | None:
    """What a call has that the kernel lacks; None if nothing."""
    if x.dtype.name not in DTYPES:
        return f"{' or '.join(DTYPES)}, not {x.dtype}"
    if not 1 <= x.shape[0] <= MOST:
        return f"1 to {MOST} tokens, not {x.shape[0]}"
    if not weights:
        return "at least one matrix"
    odd = [n for w in weights for n in w.shape if n % UNIT or n == 0]
    if odd:
        return f"matrices whose sides are multiples of {UNIT}, not {odd[0]}"
    return None


def projections(x: jax.Array, weights: tuple[jax.Array, ...]) -> list[jax.Array]:
    """See the package."""
    settings = tuned.settings("projections", "project", x.dtype)
    tokens, hidden = x.shape
    rows = min(settings["rows"], max(UNIT, pl.next_power_of_2(tokens)))
    # One block width for all: it cuts every matrix evenly.
    columns = min([settings["columns"], *(w.shape[1] & -w.shape[1] for w in weights)])
    depth = min(settings["depth"], hidden & -hidden)
    starts = [0]
    for w in weights:
        starts.append(starts[-1] + w.shape[1] // columns)

    def project(x_ref, *refs):
        block = pl.program_id(0)
        # Tokens behind the last one repeat it, and write what it writes.
        row = pl.program_id(1) * rows + jnp.arange(rows, dtype=jnp.int32)
        row = jnp.minimum(row, tokens - 1)

        def of_matrix(weights_ref, out_ref, start: int) -> None:
            own = pl.ds((block - start) * columns, columns)

            def add(i, total):
                at = pl.ds(i * depth, depth)
                return total + dot(x_ref[row, at], weights_ref[at, own])

            total = jnp.zeros((rows, columns), jnp.float32)
            total = lax.fori_loop(0, hidden // depth, add, total)
            out_ref[row, own] = total.astype(out_ref.dtype)

        for i, (weights_ref, out_ref) in enumerate(zip(refs[:n], refs[n:], strict=True)):
            inside = (block >= starts[i]) & (block < starts[i + 1])
            pl.when(inside)(functools.partial(of_matrix, weights_ref, out_ref, starts[i]))

    n = len(weights)
    return pl.pallas_call(
        project,
        grid=(starts[-1], pl.cdiv(tokens, rows)),
        out_shape=[jax.ShapeDtypeStruct((tokens, w.shape[1]), x.dtype) for w in weights],
        compiler_params=tuned.compiler_params(
            settings, [side * depth * x.dtype.itemsize for side in (rows, columns)], early=True
        ),
        interpret=interpret.enabled(),
        name="project",
    )(x, *weights)
