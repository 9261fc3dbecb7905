"""Flash attention for AMD and NVIDIA GPUs, and its backward pass in two kernels.

A tile of scores is [rows, keys]; see `visits` for rows and for which tiles are visited. The forward
kernel and the kernel for dq walk over the keys of a block of rows, the kernel for dk and dv over
the rows of a block of keys. Every result is summed by one program in one order: no atomics, so the
same call gives the same bits. The backward kernels recompute the probabilities from the
log-sum-exp, so that nothing of size S x S exists.

Blocks that reach over the end of an array hold its last row or key once more: every load is in
bounds and every store harmless (the same value to the same place), without a mask on memory. Only
their influence on others is masked, and `visits` counts them among the tiles to mask.

Scores are kept in units of log 2, for exp2 is what the hardware has. Batch and kv head vary fastest
over the grid: on MI300X, where neighbouring programs are dealt out over eight dies with a cache
each, the programs that read the same keys then meet on one die. Blocks with the most work go first,
so that the short ones fill the gaps at the end.

Source: Dao, FlashAttention-2 (2023), algorithms 1 and 2.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels import interpret, tuned
from pallas_kernels.attention import visits
from pallas_kernels.dots import dot

DTYPES = ("bfloat16", "float32")
WIDTHS = (16, 32, 64, 128)
LOG2E = math.log2(math.e)


class _Static(NamedTuple):
    """What is known when the kernels are built; settings as items, to be hashable."""

    window: int | None
    scale: float
    interpret: bool
    forward: tuple[tuple[str, int], ...]
    backward_rows: tuple[tuple[str, int], ...]
    backward_keys: tuple[tuple[str, int], ...]


def supports(
    q, k, v, segment_ids=None, *, query_offset=0, window=None, scale=None, return_lse=False
) -> str | None:
    """What a call has that the kernels lack; None if nothing."""
    dtypes = {x.dtype.name for x in (q, k, v)}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return f"q, k and v all {' or all '.join(DTYPES)}, not {', '.join(sorted(dtypes))}"
    if q.shape[-1] not in WIDTHS:
        return f"heads of width {', '.join(map(str, WIDTHS))}, not {q.shape[-1]}"
    if scale is not None and not scale > 0:
        return f"a positive scale, not {scale}"
    return None


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    query_offset: jax.Array | int = 0,
    window: int | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.attention.attention`."""

    def settings(kernel: str) -> tuple[tuple[str, int], ...]:
        return tuple(tuned.settings("attention", kernel, q.dtype).items())

    static = _Static(
        window,
        q.shape[-1] ** -0.5 if scale is None else scale,
        interpret.enabled(),
        *map(settings, ("forward", "backward_rows", "backward_keys")),
    )
    offset = jnp.asarray(query_offset, jnp.int32)
    out, lse = _attend(static, q, k, v, segment_ids, offset)
    return (out, lse) if return_lse else out


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: _Static, q, k, v, segment_ids, offset):
    return _forward(static, q, k, v, segment_ids, offset)[0]


class _Launch:
    """A kernel over the arrays of one call: its sizes, how it sees the arrays, its launch."""

    def __init__(self, static: _Static, settings, q, k, segment_ids, offset):
        self.static, self.settings = static, dict(settings)
        self.segment_ids, self.offset = segment_ids, offset
        (self.B, S, H, self.C), (T, self.K) = q.shape, k.shape[1:3]
        rows, keys = self.settings["rows"], self.settings["keys"]
        self.sizes = visits.Sizes(S, T, H // self.K, rows, keys, static.window)

    def grouped(self, x: jax.Array) -> jax.Array:
        """[B, S, H, ...] to [B, S, K, G, ...]."""
        return x.reshape(*x.shape[:2], self.K, self.sizes.group, *x.shape[3:])

    # A program sees one row of the batch and one kv head of every array, whole.

    def of_queries(self) -> pl.BlockSpec:
        """[B, S, K, G, C] as [S, G, C]."""
        shape = (None, self.sizes.queries, None, self.sizes.group, self.C)
        return pl.BlockSpec(shape, lambda h, b, i: (b, 0, h, 0, 0))

    def of_rows(self) -> pl.BlockSpec:
        """[B, S, K, G] as [S, G]."""
        shape = (None, self.sizes.queries, None, self.sizes.group)
        return pl.BlockSpec(shape, lambda h, b, i: (b, 0, h, 0))

    def of_keys(self) -> pl.BlockSpec:
        """[B, T, K, C] as [T, C]."""
        return pl.BlockSpec((None, self.sizes.keys, None, self.C), lambda h, b, i: (b, 0, h, 0))

    def __call__(self, kernel, arrays, specs, out_shape, out_specs, *, own: str):
        """Launches a program for every kv head, every row of the batch and every block of `own`
        (rows or keys); it runs `kernel(tiles, *refs)`."""
        of_own = visits.of_rows if own == "rows" else visits.of_keys
        other = "keys" if own == "rows" else "rows"
        visited = of_own(self.sizes, self.offset, self.segment_ids)
        per_row, blocks = visited.shape[0] > 1, visited.shape[1]
        steering = [visited, self.offset[None]]
        steering_specs = [
            pl.BlockSpec((None, blocks, 4), lambda h, b, i: (b if per_row else 0, 0, 0)),
            pl.BlockSpec((1,), lambda h, b, i: (0,)),
        ]
        if self.segment_ids is not None:
            steering.append(self.segment_ids)
            steering_specs.append(pl.BlockSpec((None, self.sizes.keys), lambda h, b, i: (b, 0)))

        def program(visits_ref, offset_ref, *refs):
            segments_ref = None if self.segment_ids is None else refs[0]
            tiles = _Tiles(self.sizes, own, visits_ref, offset_ref, segments_ref)
            kernel(tiles, *refs[self.segment_ids is not None :])

        return pl.pallas_call(
            program,
            grid=(self.K, self.B, blocks),
            in_specs=[*steering_specs, *specs],
            out_shape=out_shape,
            out_specs=out_specs,
            # Of each block of the other side two arrays are read: keys and values, or q and dO.
            compiler_params=tuned.compiler_params(
                self.settings,
                [self.settings[other] * self.C * arrays[0].dtype.itemsize] * 2,
                self.settings[own] * self.C * arrays[0].dtype.itemsize,
                early=arrays[0].dtype == jnp.float32,
                chained=True,
            ),
            interpret=self.static.interpret,
            name=f"attention_{kernel.__name__}",
        )(*steering, *arrays)


class _Tiles:
    """The tiles of a program that has one block of `own` and walks over the other side."""

    def __init__(self, sizes: visits.Sizes, own: str, visits_ref, offset_ref, segments_ref):
        self.sizes, self.own, self.visits_ref = sizes, own, visits_ref
        self.offset, self.segments_ref = offset_ref[0], segments_ref

    def rows(self, i) -> tuple[jax.Array, jax.Array]:
        """The indices, query and head, of block i of rows."""
        row = i * self.sizes.block_rows + jnp.arange(self.sizes.block_rows)
        if self.sizes.rows % self.sizes.block_rows:
            row = jnp.minimum(row, self.sizes.rows - 1)
        # Of numbers that are not negative: jnp's // and % would care for signs.
        return lax.div(row, self.sizes.group), lax.rem(row, self.sizes.group)

    def keys(self, j, *, inside: bool = False):
        """The index of block j of keys; `inside` promises that it does not reach over the end."""
        block = self.sizes.block_keys
        if self.sizes.keys % block == 0 or (inside and block <= self.sizes.keys):
            return pl.ds(j * block, block)
        return jnp.minimum(j * block + jnp.arange(block), self.sizes.keys - 1)

    def visible(self, i, j) -> jax.Array:
        """bool [rows, keys]: which pairs of block i of rows and block j of keys count."""
        row = i * self.sizes.block_rows + jnp.arange(self.sizes.block_rows)
        query = self.rows(i)[0]
        key = j * self.sizes.block_keys + jnp.arange(self.sizes.block_keys)
        if self.own == "keys":  # those over the end must do as the last one does
            key = jnp.minimum(key, self.sizes.keys - 1)
        ahead = (self.offset + query)[:, None] - key[None, :]
        visible = ahead >= 0  # which leaves out keys over the end
        if self.own == "keys" and self.sizes.rows % self.sizes.block_rows:
            visible &= (row < self.sizes.rows)[:, None]
        if self.sizes.window is not None:
            visible &= ahead < self.sizes.window
        if self.segments_ref is not None:
            own, other = self.segments_ref[self.offset + query], self.segments_ref[self.keys(j)]
            visible &= own[:, None] == other[None, :]
        return visible

    def visit(self, block, body, carry):
        """`carry = body(other block, carry, masked)` for all that `block` visits."""
        begin, plain_begin, plain_end, end = (self.visits_ref[block, n] for n in range(4))
        carry = lax.fori_loop(plain_begin, plain_end, lambda n, c: body(n, c, False), carry)
        before = plain_begin - begin

        def edge(n, carry):
            return body(jnp.where(n < before, begin + n, plain_end + n - before), carry, True)

        return lax.fori_loop(0, before + end - plain_end, edge, carry)


def _forward(static: _Static, q, k, v, segment_ids, offset):
    launch = _Launch(static, static.forward, q, k, segment_ids, offset)
    sizes, factor = launch.sizes, static.scale * LOG2E

    def forward(tiles: _Tiles, q_ref, k_ref, v_ref, out_ref, lse_ref):
        i = sizes.row_blocks - 1 - pl.program_id(2)  # the last rows see most
        at = tiles.rows(i)
        q = q_ref[*at, :]

        def attend(j, carry, masked):
            out, top, total = carry
            keys = tiles.keys(j, inside=not masked)
            scores = dot(q, k_ref[keys, :], 1, 1)
            if masked:
                scores = jnp.where(tiles.visible(i, j), scores, -jnp.inf)
            new_top = jnp.maximum(top, jnp.max(scores, axis=1))
            # A row that has seen nothing yet has no top: any finite one gives it zeros.
            base = (jnp.where(new_top == -jnp.inf, 0, new_top) if masked else new_top) * factor
            p = jnp.exp2(scores * factor - base[:, None])
            shrink = jnp.exp2(top * factor - base)
            gathered = dot(p.astype(v_ref.dtype), v_ref[keys, :], 1, 0)
            return out * shrink[:, None] + gathered, new_top, total * shrink + jnp.sum(p, axis=1)

        out = jnp.zeros(q.shape, jnp.float32)
        row = jnp.zeros(q.shape[:1], jnp.float32)
        out, top, total = tiles.visit(i, attend, (out, row - jnp.inf, row))
        out_ref[*at, :] = (out / total[:, None]).astype(out_ref.dtype)
        lse_ref[*at] = (top * factor + jnp.log2(total)) / LOG2E

    B, S, H, _ = q.shape
    grouped = launch.grouped(q)
    out, lse = launch(
        forward,
        (grouped, k, v),
        [launch.of_queries(), launch.of_keys(), launch.of_keys()],
        [
            jax.ShapeDtypeStruct(grouped.shape, q.dtype),
            jax.ShapeDtypeStruct(grouped.shape[:-1], jnp.float32),
        ],
        [launch.of_queries(), launch.of_rows()],
        own="rows",
    )
    out, lse = out.reshape(q.shape), lse.reshape(B, S, H)
    return (out, lse), (q, k, v, segment_ids, offset, out, lse)


def _backward(static: _Static, kept, cotangents):
    q, k, v, segment_ids, offset, out, lse = kept
    d_out, d_lse = cotangents
    # d score = p (d p - delta); the log-sum-exp's own gradient is p d_lse.
    delta = jnp.sum(out.astype(jnp.float32) * d_out.astype(jnp.float32), axis=-1) - d_lse
    arrays = q, k, v, d_out, lse, delta
    dq = _backward_rows(static, *arrays, segment_ids, offset)
    dk, dv = _backward_keys(static, *arrays, segment_ids, offset)
    return dq, dk, dv, None, None


def _backward_rows(static: _Static, q, k, v, d_out, lse, delta, segment_ids, offset):
    launch = _Launch(static, static.backward_rows, q, k, segment_ids, offset)
    sizes, factor = launch.sizes, static.scale * LOG2E

    def backward_rows(tiles: _Tiles, q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, dq_ref):
        i = sizes.row_blocks - 1 - pl.program_id(2)
        at = tiles.rows(i)
        q, d_out, delta = q_ref[*at, :], d_out_ref[*at, :], delta_ref[*at]
        lse = lse_ref[*at] * LOG2E

        def add(j, dq, masked):
            keys = tiles.keys(j, inside=not masked)
            k = k_ref[keys, :]
            scores = dot(q, k, 1, 1)
            if masked:
                scores = jnp.where(tiles.visible(i, j), scores, -jnp.inf)
            p = jnp.exp2(scores * factor - lse[:, None])
            d_scores = p * (dot(d_out, v_ref[keys, :], 1, 1) - delta[:, None])
            return dq + dot(d_scores.astype(k.dtype), k, 1, 0)

        dq = tiles.visit(i, add, jnp.zeros(q.shape, jnp.float32))
        dq_ref[*at, :] = (dq * static.scale).astype(dq_ref.dtype)

    queries, keys, rows = launch.of_queries(), launch.of_keys(), launch.of_rows()
    grouped = [launch.grouped(x) for x in (q, d_out, lse, delta)]
    dq = launch(
        backward_rows,
        (grouped[0], k, v, *grouped[1:]),
        [queries, keys, keys, queries, rows, rows],
        jax.ShapeDtypeStruct(grouped[0].shape, q.dtype),
        queries,
        own="rows",
    )
    return dq.reshape(q.shape)


def _backward_keys(static: _Static, q, k, v, d_out, lse, delta, segment_ids, offset):
    launch = _Launch(static, static.backward_keys, q, k, segment_ids, offset)
    factor = static.scale * LOG2E

    def backward_keys(
        tiles: _Tiles, q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, dk_ref, dv_ref
    ):
        j = pl.program_id(2)  # the first keys are seen by most
        keys = tiles.keys(j)
        k, v = k_ref[keys, :], v_ref[keys, :]

        def add(i, carry, masked):
            dk, dv = carry
            at = tiles.rows(i)
            q, d_out = q_ref[*at, :], d_out_ref[*at, :]
            # Tiles stand on their side, [keys, rows]: so the large operands of both sums are used
            # as they come, and only the small ones are turned.
            scores = dot(k, q, 1, 1)
            if masked:
                scores = jnp.where(tiles.visible(i, j).T, scores, -jnp.inf)
            p = jnp.exp2(scores * factor - (lse_ref[*at] * LOG2E)[None, :])
            dv += dot(p.astype(d_out.dtype), d_out, 1, 0)
            d_scores = p * (dot(v, d_out, 1, 1) - delta_ref[*at][None, :])
            return dk + dot(d_scores.astype(q.dtype), q, 1, 0), dv

        zeros = jnp.zeros(k.shape, jnp.float32)
        dk, dv = tiles.visit(j, add, (zeros, zeros))
        dk_ref[keys, :] = (dk * static.scale).astype(dk_ref.dtype)
        dv_ref[keys, :] = dv.astype(dv_ref.dtype)

    queries, keys, rows = launch.of_queries(), launch.of_keys(), launch.of_rows()
    grouped = [launch.grouped(x) for x in (q, d_out, lse, delta)]
    return launch(
        backward_keys,
        (grouped[0], k, v, *grouped[1:]),
        [queries, keys, keys, queries, rows, rows],
        [jax.ShapeDtypeStruct(k.shape, x.dtype) for x in (k, v)],
        [keys, keys],
        own="keys",
    )


_attend.defvjp(_forward, _backward)
