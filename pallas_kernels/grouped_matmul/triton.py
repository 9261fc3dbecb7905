"""The experts for AMD and NVIDIA GPUs: two launches forward, four backward, any group sizes.

With x, h and so on standing for rows, [G, U] for an expert's `gate_up` and W for its `down`:

| kernel | a program owns | walks over | writes |
|---|---|---|---|
| `experts_gate_up` | a tile of rows x columns of F | D | h = silu(x G) (x U), and z = x [G, U] |
| `experts_down` | a tile of rows x columns of D | F | y = p (h W) |
| `experts_backward_glu` | a tile of rows x columns of F | D | dz, p h, shares of dp |
| `experts_backward_rows` | a tile of rows x columns of D | 2F | dx = dz [G, U]^T |
| `experts_backward_weights` | an expert, a tile of its matrix | its rows | x^T dz; (p h)^T dy |

Tiles of rows are those of `layout`: one expert each. The permutation to expert order is a gather
inside the kernels that read tokens, and its inverse a store by index inside those that write them:
every assignment is written once, by the program that computed it, so nothing is added by atomics
and the same call gives the same bits. Of several choices of a token, XLA adds the rows. Tokens that
ask for no expert are tiles too, which write zeros and read nothing.

A tile that is not full repeats the last row of its run: every load is in bounds, and every store
harmless (the same value to the same place), without a mask on memory. Only sums over rows, which
are the gradients of the weights, leave the repeated ones out.

z is kept for the backward pass. To recompute it there would add two matmuls to its six (in units of
T D F multiplications), and where memory is short the whole layer is recomputed (`jax.checkpoint`),
with which z would be computed three times. Few tokens without a backward pass go to `decode`.

Column blocks vary fastest over the grid. On MI300X, where neighbouring programs are dealt out over
eight dies with a cache each, a die then keeps its eighth of an expert's weights while tiles of rows
pass by.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels import interpret, tuned
from pallas_kernels.dots import dot
from pallas_kernels.grouped_matmul import decode
from pallas_kernels.grouped_matmul.layout import Layout, lay_out
from pallas_kernels.grouped_matmul.tiles import UNIT, block_of, scaled, swiglu
from pallas_kernels.grouped_matmul.weights import Matrices, lacks
from pallas_kernels.quantized import Quantized

DTYPES = ("bfloat16", "float32")
# Rows of a tile; few where experts have fewer tokens than that on average.
ROWS = {"bfloat16": 128, "float32": 64}
MANY = 64
FORWARD = ("gate_up", "down", "decode_gate_up", "decode_down")
BACKWARD = ("backward_glu", "backward_rows", "backward_weights")


class _Static(NamedTuple):
    """What is known when the kernels are built; settings as items, to be hashable."""

    rows: int
    interpret: bool
    settings: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]

    def of(self, kernel: str) -> dict[str, int]:
        return dict(dict(self.settings)[kernel])


def supports(x, index, weight, gate_up, down) -> str | None:
    """What a call has that the kernels lack; None if nothing."""
    if x.dtype.name not in DTYPES or weight.dtype.name not in DTYPES:
        names = f"x {x.dtype.name} and weight {weight.dtype.name}"
        return f"{' or '.join(DTYPES)}, not {names}"
    if x.shape[1] % UNIT or down.shape[1] % UNIT:
        sizes = f"{x.shape[1]} and {down.shape[1]}"
        return f"hidden and expert widths that are multiples of {UNIT}, not {sizes}"
    if index.size == 0 or gate_up.size == 0:
        return "at least one token and one expert"
    given = [lacks(w) for w in (gate_up, down) if isinstance(w, Quantized)]
    return next((lack for lack in given if lack is not None), None)


def experts(
    x: jax.Array,
    index: jax.Array,
    weight: jax.Array,
    gate_up: jax.Array | Quantized,
    down: jax.Array | Quantized,
) -> jax.Array:
    """See `pallas_kernels.grouped_matmul.experts`."""
    suffix = "" if x.dtype == jnp.bfloat16 else f"_{x.dtype.name}"
    kernels: tuple[str, ...] = FORWARD + BACKWARD
    if isinstance(gate_up, Quantized):
        kernels, suffix = FORWARD, suffix or f"_{gate_up.kind}"
    settings = (
        (kernel, tuple(tuned.settings("grouped_matmul", kernel + suffix).items()))
        for kernel in kernels
    )
    many = index.size >= MANY * gate_up.shape[0]
    rows = ROWS[x.dtype.name] if many else UNIT
    static = _Static(rows, interpret.enabled(), tuple(settings))
    return _experts(static, x, index, weight, gate_up, down)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _experts(static: _Static, x, index, weight, gate_up, down):
    if index.size <= decode.MOST:
        return decode.experts(static.of, static.interpret, x, index, weight, gate_up, down)
    layout = lay_out(index, gate_up.shape[0], static.rows)
    return _apply(static, layout, x, weight, gate_up, down, keep=False)[0]


def _forward(static: _Static, x, index, weight, gate_up, down):
    layout = lay_out(index, gate_up.shape[0], static.rows)
    y, z = _apply(static, layout, x, weight, gate_up, down, keep=True)
    return y, (layout, x, weight, gate_up, down, z)


class _Tile(NamedTuple):
    """What a program owns: rows of one expert, and a block of columns."""

    expert: jax.Array
    padded: Any  # slice of its padded rows
    assignment: jax.Array  # [rows]
    token: jax.Array  # [rows]
    column: jax.Array  # number of the block
    block: int  # columns of a block

    def columns(self, first: int = 0) -> Any:
        """Slice of its columns in a matrix where they are counted from `first`."""
        return pl.ds(first + self.column * self.block, self.block)


def _over_tiles(
    static: _Static,
    layout: Layout,
    kernel: str,
    body: Callable[..., None],
    arrays: tuple[jax.Array, ...],
    outputs: list[jax.ShapeDtypeStruct],
    *,
    columns: int,
    choices: int,
    skip: Callable[..., None] | None = None,
) -> list[jax.Array]:
    """Launches `body(tile, *refs)` for all tiles of experts times all blocks of `columns` columns,
    and `skip(tile, *refs)` for tiles of what is skipped; `refs` are of `arrays` and `outputs`."""
    settings = static.of(kernel)
    block = block_of(columns, settings["columns"])
    num_experts = layout.runs.shape[0]
    # A turn reads rows, and of plain weights one block or two: gate and up.
    sides = [static.rows, *[block] * (1 + (kernel == "gate_up"))]
    plain = all(array.dtype == arrays[0].dtype for array in arrays[:2])
    deep = settings["depth"] * arrays[0].dtype.itemsize
    staged = [side * deep for side in sides] if plain else []

    def program(tiles_ref, order_ref, *refs):
        column, number = pl.program_id(0), pl.program_id(1)
        run = tiles_ref[number, 0]

        def tile() -> _Tile:
            first, stop = tiles_ref[number, 1], tiles_ref[number, 2]
            row = jnp.minimum(first + jnp.arange(static.rows, dtype=jnp.int32), stop - 1)
            assignment = order_ref[row]
            token = assignment if choices == 1 else lax.div(assignment, choices)
            padded = pl.ds(number * static.rows, static.rows)
            return _Tile(run, padded, assignment, token, column, block)

        pl.when(run < num_experts)(lambda: body(tile(), *refs))
        if skip is not None:
            pl.when(run == num_experts)(lambda: skip(tile(), *refs))

    return pl.pallas_call(
        program,
        grid=(columns // block, layout.tiles.shape[0]),
        out_shape=outputs,
        compiler_params=tuned.compiler_params(
            settings, staged, early=static.rows < MANY or arrays[0].dtype == jnp.float32
        ),
        interpret=static.interpret,
        name=f"experts_{kernel}",
    )(layout.tiles, layout.order, *arrays)


def _apply(static: _Static, layout: Layout, x, weight, gate_up, down, *, keep: bool):
    """`(y, z)`: the result, and what the backward pass keeps, if it is to `keep` anything."""
    matrices = Matrices(gate_up)
    depth = matrices.depth(static.of("gate_up")["depth"])
    width, padded = down.shape[1], layout.tiles.shape[0] * static.rows

    def body(tile: _Tile, x_ref, *refs):
        weights, (h_ref, *z_ref) = matrices.split(refs)
        columns = tile.columns(), tile.columns(width)
        zeros = jnp.zeros((static.rows, tile.block), jnp.float32)
        left = lambda at: x_ref[tile.token, at]  # noqa: E731
        found = matrices.products(weights, tile.expert, depth, columns, left, (zeros, zeros))
        gate, up = (total.astype(x.dtype) for total in found)
        for ref in z_ref:
            ref[tile.padded, tile.columns()] = gate
            ref[tile.padded, tile.columns(width)] = up
        h_ref[tile.padded, tile.columns()] = swiglu(gate, up)

    shapes = [jax.ShapeDtypeStruct((padded, n * width), x.dtype) for n in (1, 2)[: 1 + keep]]
    h, *z = _over_tiles(
        static,
        layout,
        "gate_up",
        body,
        (x, *matrices.arrays),
        shapes,
        columns=width,
        choices=weight.shape[1],
    )
    y = _to_tokens(static, layout, "down", h, down, weight, transposed=False)
    return y, z[0] if keep else None


def _to_tokens(
    static: _Static, layout: Layout, kernel: str, rows, weights, weight, *, transposed: bool
) -> jax.Array:
    """`y[t] = sum_k rows[of (t, k)] @ weights[its expert]` in the dtype of `rows`.

    Args:
      rows: padded rows, [P, R].
      weights: [E, R, C], or [E, C, R] if `transposed`.
      weight: [T, k] what multiplies rows of the result, unless `transposed`.
    """
    tokens, choices = weight.shape
    matrices = Matrices(weights, transposed)
    depth = matrices.depth(static.of(kernel)["depth"])
    width = weights.shape[1 if transposed else 2]

    def body(tile: _Tile, rows_ref, *refs):
        own, (weight_ref, out_ref) = matrices.split(refs)
        zeros = jnp.zeros((static.rows, tile.block), jnp.float32)
        left = lambda at: rows_ref[tile.padded, at]  # noqa: E731
        [total] = matrices.products(own, tile.expert, depth, [tile.columns()], left, [zeros])
        out = total.astype(rows.dtype)
        if not transposed:
            out = scaled(out, weight_ref[tile.assignment])
        out_ref[tile.assignment, tile.columns()] = out

    def skip(tile: _Tile, *refs):
        zeros = jnp.zeros((static.rows, tile.block), rows.dtype)
        refs[-1][tile.assignment, tile.columns()] = zeros

    [out] = _over_tiles(
        static,
        layout,
        kernel,
        body,
        (rows, *matrices.arrays, weight.reshape(-1)),
        [jax.ShapeDtypeStruct((tokens * choices, width), rows.dtype)],
        columns=width,
        choices=choices,
        skip=skip,
    )
    return out if choices == 1 else out.reshape(tokens, choices, width).sum(1)


def _backward(static: _Static, kept, dy):
    layout, x, weight, gate_up, down, z = kept
    dz, h, dp = _backward_glu(static, layout, dy, weight, down, z)
    return (
        _to_tokens(static, layout, "backward_rows", dz, gate_up, weight, transposed=True),
        None,
        dp.reshape(weight.shape).astype(weight.dtype),
        _weights(static, layout, gate_up, x, dz, gathered=0, choices=weight.shape[1]),
        _weights(static, layout, down, h, dy, gathered=1, choices=weight.shape[1]),
    )


def _backward_glu(static: _Static, layout: Layout, dy, weight, down, z):
    """Gradients of z (padded rows) and of the probabilities [N], and p * h (padded rows)."""
    width, hidden = down.shape[1:]
    settings = static.of("backward_glu")
    depth = block_of(hidden, settings["depth"])
    shares = width // block_of(width, settings["columns"])

    def body(tile: _Tile, dy_ref, down_ref, weight_ref, z_ref, dz_ref, h_ref, dp_ref):
        def add(i, total):
            at = pl.ds(i * depth, depth)
            rows = dy_ref[tile.token, at]
            return total + dot(rows, down_ref[tile.expert, tile.columns(), at], 1, 1)

        zeros = jnp.zeros((static.rows, tile.block), jnp.float32)
        dh = lax.fori_loop(0, hidden // depth, add, zeros)
        probability = weight_ref[tile.assignment].astype(jnp.float32)[:, None]
        gate = z_ref[tile.padded, tile.columns()].astype(jnp.float32)
        up = z_ref[tile.padded, tile.columns(width)].astype(jnp.float32)
        share = jax.nn.sigmoid(gate)
        silu = gate * share
        h = silu * up
        # Each program has a part of a row's channels: its share of the sum.
        dp_ref[tile.column, tile.assignment] = jnp.sum(h * dh, axis=1)
        h_ref[tile.padded, tile.columns()] = (h * probability).astype(h_ref.dtype)
        dh = dh * probability
        d_gate = dh * up * (share + silu * (1 - share))
        dz_ref[tile.padded, tile.columns()] = d_gate.astype(dz_ref.dtype)
        dz_ref[tile.padded, tile.columns(width)] = (dh * silu).astype(dz_ref.dtype)

    def skip(tile: _Tile, *refs):
        refs[-1][tile.column, tile.assignment] = jnp.zeros((static.rows,), jnp.float32)

    dz, h, dp = _over_tiles(
        static,
        layout,
        "backward_glu",
        body,
        (dy, down, weight.reshape(-1), z),
        [
            jax.ShapeDtypeStruct(z.shape, z.dtype),
            jax.ShapeDtypeStruct((z.shape[0], width), z.dtype),
            jax.ShapeDtypeStruct((shares, weight.size), jnp.float32),
        ],
        columns=width,
        choices=weight.shape[1],
        skip=skip,
    )
    return dz, h, dp.sum(0)


def _weights(static: _Static, layout: Layout, weights, *sides, gathered: int, choices: int):
    """`left^T @ right` over each expert's rows, in shape and dtype of `weights`.

    Args:
      sides: `left` and `right`; that at `gathered` in token order, the other in padded rows.
    """
    settings, (num_experts, height, width) = static.of("backward_weights"), weights.shape
    tall, wide = block_of(height, settings["rows"]), block_of(width, settings["columns"])
    depth = min(settings["depth"], static.rows)  # a run's padded rows end with a whole step

    def program(runs_ref, order_ref, left_ref, right_ref, out_ref):
        expert = pl.program_id(2)
        places = pl.ds(pl.program_id(1) * tall, tall), pl.ds(pl.program_id(0) * wide, wide)
        first, stop, padded = (runs_ref[expert, n] for n in range(3))

        def add(i, total, masked):
            row = i * depth + jnp.arange(depth, dtype=jnp.int32)
            sorted_row = first + row
            assignment = order_ref[jnp.minimum(sorted_row, stop - 1) if masked else sorted_row]
            token = assignment if choices == 1 else lax.div(assignment, choices)
            at: list[Any] = [pl.ds(padded + i * depth, depth)] * 2
            at[gathered] = token
            operands = [
                ref[rows, place]
                for ref, rows, place in zip((left_ref, right_ref), at, places, strict=True)
            ]
            if masked:
                inside = (sorted_row < stop)[:, None]
                operands[1 - gathered] = jnp.where(inside, operands[1 - gathered], 0)
            left, right = operands
            return total + dot(left, right, 0, 0)

        whole = lax.div(stop - first, depth)
        steps = lax.div(stop - first + (depth - 1), depth)
        total = jnp.zeros((tall, wide), jnp.float32)
        total = lax.fori_loop(0, whole, lambda i, total: add(i, total, False), total)
        total = lax.fori_loop(whole, steps, lambda i, total: add(i, total, True), total)
        out_ref[expert, *places] = total.astype(out_ref.dtype)

    return pl.pallas_call(
        program,
        grid=(width // wide, height // tall, num_experts),
        out_shape=jax.ShapeDtypeStruct(weights.shape, weights.dtype),
        # The rows of one side are found by an index, which each turn loads first.
        compiler_params=tuned.compiler_params(
            settings, [side * depth * sides[0].dtype.itemsize for side in (tall, wide)], early=True
        ),
        interpret=static.interpret,
        name="experts_backward_weights",
    )(layout.runs, layout.order, *sides)


_experts.defvjp(_forward, _backward)
