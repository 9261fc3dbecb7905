"""Cross-entropy for AMD and NVIDIA GPUs: of the logits, tiles [rows, columns] exist, in registers.

Forward: a program owns a block of rows and a share of the vocabulary, and walks over the tiles of
that share with a running maximum and a running sum of exponentials. Shares are joined by their
log-sum-exp. Only the log-sum-exp is kept for the backward pass.

Backward: one program cannot hold a sum over the vocabulary for d_hidden [rows, D], or over tokens
for d_head [columns, D]: at D = 2048, 128 rows in float32 are 1 MiB, and the registers of a core are
512 KiB on MI300X and 256 KiB on H100. With D cut into n parts, every part would compute the logits
anew: 1 + n products of the forward pass's size for each of the two sums, n = 2 at the very least.
So the gradient of the logits goes through memory, for as many words at a time as fit into
`LARGEST`: a kernel computes the logits of these words anew and writes their gradient, and the two
products that are left are plain matmuls, which the vendors' libraries have. That is three products,
the fewest there can be with recomputation. No atomics: chunks are added in order.

Blocks that reach over the end of an array hold its last row once more: every load is in bounds and
every store harmless (the same value to the same place), without a mask on memory.

Source: Wijmans et al., Cut Your Losses in Large-Vocabulary Language Models (2024), algorithms 1 to
3, which sum d_hidden and d_head under locks instead.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels import interpret, tuned
from pallas_kernels.attention.triton import DTYPES, LOG2E
from pallas_kernels.dots import dot

LEAST_DEPTH = 16  # of a product on matrix units
LARGEST = 2**28  # bytes of the gradient of logits that may exist at one time


class _Static(NamedTuple):
    """What is known when the kernels are built; settings as items, to be hashable."""

    interpret: bool
    forward: tuple[tuple[str, int], ...]
    backward: tuple[tuple[str, int], ...]


def supports(hidden, head, targets, *, chunk=None, return_lse=False) -> str | None:
    """What a call has that the kernels lack; None if nothing."""
    dtypes = {hidden.dtype.name, head.dtype.name}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        return f"hidden and head both {' or both '.join(DTYPES)}, not {', '.join(sorted(dtypes))}"
    if hidden.shape[1] % LEAST_DEPTH:
        return f"a hidden size that is a multiple of {LEAST_DEPTH}, not {hidden.shape[1]}"
    if not (hidden.shape[0] and head.shape[0]):
        return "at least one token and one word"
    return None


def cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    chunk: int | None = None,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.cross_entropy.cross_entropy`; `chunk` has no effect, see `LARGEST`."""

    def settings(kernel: str) -> tuple[tuple[str, int], ...]:
        return tuple(tuned.settings("cross_entropy", kernel, hidden.dtype).items())

    static = _Static(interpret.enabled(), settings("forward"), settings("backward"))
    logprob, lse = _statistics(static, hidden, head, targets.astype(jnp.int32))
    return (logprob, lse) if return_lse else logprob


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _statistics(static: _Static, hidden, head, targets):
    """`(log-probability of the target [T], log-sum-exp of the logits [T])`, both differentiable."""
    return _forward(static, hidden, head, targets)[0]


class _Tiles:
    """How the logits [T, V] of one call are cut into tiles."""

    def __init__(self, settings: tuple[tuple[str, int], ...], hidden, head):
        self.settings = dict(settings)
        (self.T, self.D), self.V = hidden.shape, head.shape[0]
        self.itemsize = hidden.dtype.itemsize
        self.rows, self.columns = self.settings["rows"], self.settings["columns"]
        # The largest power of two that divides D, if that is less.
        self.depth = min(self.settings["depth"], self.D & -self.D)
        self.column_blocks = pl.cdiv(self.V, self.columns)
        self.row_blocks = pl.cdiv(self.T, self.rows)
        # Blocks of rows in groups, as even as can be.
        self.groups = pl.cdiv(self.row_blocks, self.settings["together"])
        self.together = pl.cdiv(self.row_blocks, self.groups)

    @property
    def staged(self) -> list[int]:
        """Bytes of the two tiles that a turn of `logits` multiplies."""
        return [side * self.depth * self.itemsize for side in (self.rows, self.columns)]

    def grid(self, shares: int) -> tuple[int, int, int]:
        """Programs for every block of rows and every share of the vocabulary.

        The blocks of a group come first, then shares, then groups: what runs at one time reads few
        rows, which stay in the nearest cache, and each part of the head for a whole group.
        """
        return self.together, shares, self.groups

    def own(self) -> tuple:
        """The block of rows and the share of a program; not to be asked for inside of a loop."""
        i = pl.program_id(2) * self.together + pl.program_id(0)
        if self.groups * self.together > self.row_blocks:  # spare programs do the last block again
            i = jnp.minimum(i, self.row_blocks - 1)
        return i, pl.program_id(1)

    def row(self, i):
        """The index of block i of rows."""
        return _block(i, self.rows, self.T)

    def column(self, j):
        """The index of block j of columns."""
        return _block(j, self.columns, self.V)

    def words(self, j) -> jax.Array:
        """The numbers [1, columns] of block j; those over the end are none of the vocabulary's."""
        return (j * self.columns + jnp.arange(self.columns))[None, :]

    def logits(self, hidden_ref, head_ref, i, j) -> jax.Array:
        """[rows, columns] in float32."""
        row, column = self.row(i), self.column(j)

        def add(n, total):
            at = pl.ds(n * self.depth, self.depth)
            return total + dot(hidden_ref[row, at], head_ref[column, at], 1, 1)

        zeros = jnp.zeros((self.rows, self.columns), jnp.float32)
        return lax.fori_loop(0, self.D // self.depth, add, zeros)

    def specs(self) -> list[pl.BlockSpec]:
        """Every program sees all of hidden, head and targets."""
        matrices = (pl.BlockSpec((n, self.D), lambda *_: (0, 0)) for n in (self.T, self.V))
        return [*matrices, pl.BlockSpec((self.T,), lambda *_: (0,))]


def _block(i, size: int, end: int):
    """The index of block i of an axis with `end` items; the last one stands for those behind it."""
    if end % size == 0:
        return pl.ds(i * size, size)
    return _numbers(i, size, end)


def _numbers(i, size: int, end: int) -> jax.Array:
    """[size] of the items of block i."""
    return jnp.minimum(i * size + jnp.arange(size), end - 1)


def _forward(static: _Static, hidden, head, targets):
    tiles = _Tiles(static.forward, hidden, head)
    # So many shares that few tokens fill the device too, and that no last round leaves it idle.
    wanted = pl.cdiv(tiles.settings["programs"], tiles.row_blocks)
    each = pl.cdiv(tiles.column_blocks, min(wanted, tiles.column_blocks))
    shares = pl.cdiv(tiles.column_blocks, each)

    def cross_entropy_forward(hidden_ref, head_ref, targets_ref, chosen_ref, lse_ref):
        i, share = tiles.own()
        target = targets_ref[tiles.row(i)][:, None]

        def add(j, carry):
            top, total, chosen = carry
            logits, words = tiles.logits(hidden_ref, head_ref, i, j), tiles.words(j)
            if tiles.V % tiles.columns:
                logits = jnp.where(words < tiles.V, logits, -jnp.inf)
            chosen = jnp.maximum(
                chosen, jnp.max(jnp.where(words == target, logits, -jnp.inf), axis=1)
            )
            new_top = jnp.maximum(top, jnp.max(logits, axis=1))
            total *= jnp.exp2((top - new_top) * LOG2E)
            total += jnp.sum(jnp.exp2((logits - new_top[:, None]) * LOG2E), axis=1)
            return new_top, total, chosen

        zeros = jnp.zeros((tiles.rows,), jnp.float32)
        none = zeros - jnp.inf
        end = jnp.minimum((share + 1) * each, tiles.column_blocks)
        top, total, chosen = lax.fori_loop(share * each, end, add, (none, zeros, none))
        chosen_ref[tiles.row(i)] = chosen
        lse_ref[tiles.row(i)] = top + jnp.log2(total) / LOG2E

    chosen, lse = pl.pallas_call(
        cross_entropy_forward,
        grid=tiles.grid(shares),
        in_specs=tiles.specs(),
        out_shape=[jax.ShapeDtypeStruct((shares, tiles.T), jnp.float32)] * 2,
        out_specs=[pl.BlockSpec((None, tiles.T), lambda i, share, group: (share, 0))] * 2,
        compiler_params=tuned.compiler_params(
            tiles.settings, tiles.staged, early=hidden.dtype == jnp.float32
        ),
        interpret=static.interpret,
        name="cross_entropy_forward",
    )(hidden, head, targets)
    lse = jax.nn.logsumexp(lse, axis=0)
    return (jnp.max(chosen, axis=0) - lse, lse), (hidden, head, targets, lse)


def _backward(static: _Static, kept, cotangents):
    hidden, head, targets, lse = kept
    d_logprob, d_lse = cotangents
    block, (T, V) = dict(static.backward)["columns"], (hidden.shape[0], head.shape[0])
    width = max(LARGEST // (T * hidden.dtype.itemsize) // block, 1) * block

    def add(first, size, carry):
        """What the words from `first` on send back: [T, D] added, [size, D] put into its place."""
        d_hidden, d_head = carry
        part = lax.dynamic_slice_in_dim(head, first, size)
        d_logits = _d_logits(
            static, hidden, part, targets - first, lse, d_logprob, d_lse - d_logprob
        )
        d_part = dot(d_logits, hidden, 0, 0).astype(head.dtype)
        d_head = lax.dynamic_update_slice_in_dim(d_head, d_part, first, 0)
        return d_hidden + dot(d_logits, part, 1, 0), d_head

    carry = jnp.zeros(hidden.shape, jnp.float32), jnp.zeros_like(head)
    whole, rest = divmod(V, width)
    if whole:
        carry = lax.fori_loop(0, whole, lambda n, carry: add(n * width, width, carry), carry)
    if rest:
        carry = add(V - rest, rest, carry)
    return carry[0].astype(hidden.dtype), carry[1], None


_statistics.defvjp(_forward, _backward)


def _d_logits(static: _Static, hidden, head, targets, lse, on_target, on_all) -> jax.Array:
    """on_all * p + on_target at the target: gradient of the logits [T, V] of a part of the words.

    Targets are counted from the first of these words, and may be none of them.
    """
    tiles = _Tiles(static.backward, hidden, head)

    def cross_entropy_backward(
        hidden_ref, head_ref, targets_ref, lse_ref, on_target_ref, on_all_ref, d_logits_ref
    ):
        i, j = tiles.own()
        row = tiles.row(i)
        logits = tiles.logits(hidden_ref, head_ref, i, j)
        words = _numbers(j, tiles.columns, tiles.V)[None, :]  # what is stored twice is the same
        p = jnp.exp2((logits - lse_ref[row][:, None]) * LOG2E)
        here = words == targets_ref[row][:, None]
        d_logits = p * on_all_ref[row][:, None] + jnp.where(here, on_target_ref[row][:, None], 0)
        if tiles.V % tiles.columns:  # Pallas takes no array behind a slice
            at = _numbers(i, tiles.rows, tiles.T)[:, None], words
        else:
            at = row, tiles.column(j)
        d_logits_ref[at] = d_logits.astype(d_logits_ref.dtype)

    specs = tiles.specs()
    return pl.pallas_call(
        cross_entropy_backward,
        grid=tiles.grid(tiles.column_blocks),
        in_specs=specs + specs[-1:] * 3,
        out_shape=jax.ShapeDtypeStruct((tiles.T, tiles.V), hidden.dtype),
        out_specs=pl.BlockSpec((tiles.T, tiles.V), lambda *_: (0, 0)),
        compiler_params=tuned.compiler_params(
            tiles.settings, tiles.staged, early=hidden.dtype == jnp.float32
        ),
        interpret=static.interpret,
        name="cross_entropy_backward",
    )(hidden, head, targets, lse, on_target, on_all)
