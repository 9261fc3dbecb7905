"""Split-K decoding for AMD and NVIDIA GPUs: many programs share the cache of one sequence.

One token's attention is bound by reading the cache. So the positions that a row attends, whatever
its length, are dealt out evenly over `splits` programs a kv head, enough to keep every core
reading. Each packs the query heads that share its kv head into one matrix tile and reads every key
and value once. A second kernel joins the splits by their log-sum-exp; with a single split there is
none, the first one writes the result.

A block that reaches over what a row attends reads positions again that are (pages before a window
or behind the end may be gone), and gives them no weight.

Source: Dao et al., Flash-Decoding (2023); the pages are those of Kwon et al., vLLM (2023).
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from pallas_kernels import interpret, offsets, tuned
from pallas_kernels.attention.triton import DTYPES, LOG2E, WIDTHS
from pallas_kernels.dots import dot

QUANTIZED = ("int8", "float8_e4m3fn")  # Pallas cannot cast from e4m3fnuz, gfx942's own fp8
MIN_ROWS = 16  # of a matrix tile
MIN_BLOCKS = 4  # a split, or what it writes would be too much beside what it reads


def supports(
    q, k_cache, v_cache, lengths, *, window=None, scale=None, start=None, pages=None, scales=None
) -> str | None:
    """What a call has that the kernels lack; None if nothing."""
    if q.dtype.name not in DTYPES:
        return f"q in {' or '.join(DTYPES)}, not {q.dtype}"
    accepted = (q.dtype.name,) if scales is None else QUANTIZED
    if not {k_cache.dtype.name, v_cache.dtype.name} <= set(accepted):
        kind = "caches" if scales is None else "caches with scales"
        return f"{kind} in {' or '.join(accepted)}, not {k_cache.dtype}, {v_cache.dtype}"
    if q.shape[-1] not in WIDTHS:
        return f"heads of width {', '.join(map(str, WIDTHS))}, not {q.shape[-1]}"
    return offsets.lacks("caches", k_cache, v_cache)


def decode_attention(
    q: jax.Array,
    k_cache: jax.Array,
    v_cache: jax.Array,
    lengths: jax.Array,
    *,
    window: int | None = None,
    scale: float | None = None,
    start: jax.Array | None = None,
    pages: jax.Array | None = None,
    scales: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """See `pallas_kernels.decode_attention.decode_attention`."""
    (B, H, C), (_, K, room, _) = q.shape, k_cache.shape
    settings = tuned.settings("decode_attention", "split", q.dtype)
    T = room if pages is None else room * pages.shape[1]
    splits = _splits(B * K, T if window is None else min(T, window), settings)
    factor = (C**-0.5 if scale is None else scale) * LOG2E
    grouped = q.reshape(B, K, H // K, C)
    tile = settings["keys"] * C * k_cache.dtype.itemsize  # bytes of keys, and of values

    whole_batch = pl.BlockSpec((B,), lambda s, h, b: (0,))
    of_head = pl.BlockSpec((None, None, *grouped.shape[2:]), lambda s, h, b: (b, h, 0, 0))
    if pages is None:
        of_cache = pl.BlockSpec((None, None, T, C), lambda s, h, b: (b, h, 0, 0))
        of_scales = pl.BlockSpec((None, None, T), lambda s, h, b: (b, h, 0))
    else:
        of_cache = pl.BlockSpec((len(k_cache), None, room, C), lambda s, h, b: (0, h, 0, 0))
        of_scales = pl.BlockSpec((len(k_cache), None, room), lambda s, h, b: (0, h, 0))
    inputs = {
        "lengths": (lengths, whole_batch),
        "q": (grouped, of_head),
        "k": (k_cache, of_cache),
        "v": (v_cache, of_cache),
    }
    if start is not None:
        inputs["start"] = start, whole_batch
    if pages is not None:
        inputs["pages"] = pages, pl.BlockSpec((None, pages.shape[1]), lambda s, h, b: (b, 0))
    if scales is not None:
        inputs |= {"k_scale": (scales[0], of_scales), "v_scale": (scales[1], of_scales)}

    def decode_split(*refs):
        given, (out_ref, *lse_ref) = dict(zip(inputs, refs, strict=False)), refs[len(inputs) :]
        row = _Row(given, T, settings["keys"], window)
        head = jnp.minimum(jnp.arange(_tile_rows(H // K)), H // K - 1)  # spare ones repeat the last
        q = given["q"][head, :]

        def attend(j, carry):
            out, top, total = carry
            at = row.block(j)
            scores = dot(q, given["k"][*at, :].astype(q.dtype), 1, 1) * factor
            if scales is not None:
                scores *= given["k_scale"][*at].astype(jnp.float32)[None, :]
            scores = jnp.where(row.attends(j)[None, :], scores, -jnp.inf)
            new_top = jnp.maximum(top, jnp.max(scores, axis=1))
            base = jnp.where(new_top == -jnp.inf, 0, new_top)
            p = jnp.exp2(scores - base[:, None])
            shrink = jnp.exp2(top - base)
            total = total * shrink + jnp.sum(p, axis=1)
            if scales is not None:
                p *= given["v_scale"][*at].astype(jnp.float32)[None, :]
            gathered = dot(p.astype(q.dtype), given["v"][*at, :].astype(q.dtype), 1, 0)
            return out * shrink[:, None] + gathered, new_top, total

        none = jnp.zeros(q.shape[:1], jnp.float32)
        begin, end = row.share(pl.program_id(0), splits)
        out, top, total = lax.fori_loop(
            begin, end, attend, (jnp.zeros(q.shape, jnp.float32), none - jnp.inf, none)
        )
        out = out / jnp.where(total > 0, total, 1)[:, None]
        out_ref[head, :] = out.astype(out_ref.dtype)
        if lse_ref:
            lse_ref[0][head] = top + jnp.log2(total)

    shapes, specs = [jax.ShapeDtypeStruct(grouped.shape, q.dtype)], [of_head]
    if splits > 1:
        shares = (B, K, splits, *grouped.shape[2:])
        shapes = [jax.ShapeDtypeStruct(x, jnp.float32) for x in (shares, shares[:-1])]
        specs = [
            pl.BlockSpec((None, None, None, *shares[3:]), lambda s, h, b: (b, h, s, 0, 0)),
            pl.BlockSpec((None, None, None, shares[3]), lambda s, h, b: (b, h, s, 0)),
        ]
    arrays, in_specs = zip(*inputs.values(), strict=True)
    results = pl.pallas_call(
        decode_split,
        grid=(splits, K, B),
        in_specs=in_specs,
        out_shape=shapes,
        out_specs=specs,
        # Keys and values. Behind a page's number, which a turn loads first, stages are fewer.
        compiler_params=tuned.compiler_params(
            settings, [tile] * 2 if pages is None else [], tile, early=True, chained=True
        ),
        interpret=interpret.enabled(),
        name="decode_split",
    )(*arrays)
    joined = results[0] if splits == 1 else _join(results[0], results[1], q.dtype)
    return joined.reshape(q.shape)


class _Row:
    """Of one sequence: where its positions are, and which of them a program attends."""

    def __init__(self, given: Mapping, T: int, block: int, window: int | None):
        b = pl.program_id(2)
        self.T, self.block_keys, self.pages = T, block, given.get("pages")
        self.room = given["k"].shape[-2]  # of a page
        self.end = given["lengths"][b]
        self.first = given["start"][b] if "start" in given else jnp.int32(0)
        if window is not None:
            self.first = jnp.maximum(self.first, self.end - window)

    def share(self, split, splits: int):
        """The blocks [begin, end) of a split."""
        first = lax.div(self.first, self.block_keys)
        end = lax.div(self.end + self.block_keys - 1, self.block_keys)
        each = lax.div(jnp.maximum(end - first, 0) + splits - 1, splits)
        begin = first + split * each
        return begin, jnp.minimum(begin + each, end)

    def positions(self, j) -> jax.Array:
        return j * self.block_keys + jnp.arange(self.block_keys)

    def attends(self, j) -> jax.Array:
        return (self.positions(j) >= self.first) & (self.positions(j) < self.end)

    def block(self, j) -> tuple:
        """The index of block j in the cache."""
        begin = j * self.block_keys
        if self.pages is not None and self.room % self.block_keys == 0:
            inside = pl.ds(lax.rem(begin, self.room), self.block_keys)
            return self.pages[lax.div(begin, self.room)], inside
        if self.pages is None and self.T % self.block_keys == 0:
            return (pl.ds(begin, self.block_keys),)
        position = jnp.clip(self.positions(j), self.first, self.end - 1)
        if self.pages is None:
            return (position,)
        return self.pages[lax.div(position, self.room)], lax.rem(position, self.room)


def _tile_rows(group: int) -> int:
    return max(MIN_ROWS, pl.next_power_of_2(group))


def _splits(heads: int, positions: int, settings: Mapping[str, int]) -> int:
    """Splits of each of `heads` kv heads, a power of two, for `positions` at most."""
    most = max(positions // (MIN_BLOCKS * settings["keys"]), 1)
    wanted = pl.next_power_of_2(pl.cdiv(settings["programs"], heads))
    return min(wanted, 2 ** (most.bit_length() - 1))


def _join(out: jax.Array, lse: jax.Array, dtype) -> jax.Array:
    """The splits of each head joined: out [B, K, splits, G, C] and lse [B, K, splits, G], to the
    base of 2, give [B, K, G, C]."""
    settings = tuned.settings("decode_attention", "join")
    B, K, splits, G, C = out.shape
    step = min(settings["splits"], splits)

    def decode_join(out_ref, lse_ref, joined_ref):
        lse = lse_ref[:]
        top = jnp.max(lse)
        top = jnp.where(top == -jnp.inf, 0, top)

        def add(i, total):
            at = pl.ds(i * step, step)
            return total + jnp.sum(jnp.exp2(lse_ref[at] - top)[:, None] * out_ref[at, :], axis=0)

        joined = lax.fori_loop(0, splits // step, add, jnp.zeros((C,), jnp.float32))
        total = jnp.sum(jnp.exp2(lse - top))
        joined_ref[:] = (joined / jnp.where(total > 0, total, 1)).astype(dtype)

    return pl.pallas_call(
        decode_join,
        grid=(G, K, B),
        in_specs=[
            pl.BlockSpec((None, None, splits, None, C), lambda g, h, b: (b, h, 0, g, 0)),
            pl.BlockSpec((None, None, splits, None), lambda g, h, b: (b, h, 0, g)),
        ],
        out_shape=jax.ShapeDtypeStruct((B, K, G, C), dtype),
        out_specs=pl.BlockSpec((None, None, None, C), lambda g, h, b: (b, h, g, 0)),
        compiler_params=tuned.compiler_params(settings),
        interpret=interpret.enabled(),
        name="decode_join",
    )(out, lse)
