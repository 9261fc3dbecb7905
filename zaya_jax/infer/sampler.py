"""From logits to tokens: greedy, temperature, top-k, top-p and min-p, per row of a batch.

The order is that of transformers: temperature, then top-k, then top-p, then min-p, each on what the
ones before it left. Neither top-k nor top-p sorts the vocabulary. Both keep the smallest set of
largest logits that weighs enough (k tokens, or a mass of p), so both are one threshold, which is
found by bisection over the bits of a float32: 32 passes over the row, exact.

What no row of a batch needs costs nothing: it is left out of the program, or, where one program is
to serve all batches (`Filters` that are data), skipped when it runs.

A row's draw depends on its own logits, settings, seed and position only, never on the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax.errors import UserError

BLOCK = 512  # tokens that are drawn among in one step; about the root of a large vocabulary


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the tokens of one request are chosen.

    temperature: divides the logits; 0 is greedy, and then the filters and the seed mean nothing. So
      is a number below the normal range of float32, which devices may take for zero.
    top_k: keep the k most likely tokens (and ties with the last); None keeps all.
    top_p: keep the fewest most likely tokens whose probabilities sum to p (Holtzman et al. 2019).
    min_p: keep tokens at least min_p times as likely as the most likely one (Nguyen et al. 2024).
    seed: of the draws.

    Raises:
      UserError: a value outside its range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0

    def __post_init__(self):
        def need(holds: bool, name: str, accepted: str) -> None:
            if not holds:
                raise UserError(f"{name} = {getattr(self, name)!r}: expected {accepted}")

        finite = np.isfinite(self.temperature)
        need(finite and self.temperature >= 0, "temperature", "a finite number of at least 0")
        need(self.top_k is None or self.top_k >= 1, "top_k", "at least 1, or none")
        need(0 < self.top_p <= 1, "top_p", "a share above 0, at most 1")
        need(0 <= self.min_p <= 1, "min_p", "a share from 0 to 1")
        need(0 <= self.seed < 2**63, "seed", "0 <= seed < 2**63")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is chosen and nothing is drawn."""
        return self.temperature < float(np.finfo(np.float32).tiny)


class Filters(NamedTuple):
    """Which parts of `sample` any row of a batch needs: static bools, or bool [] data."""

    draw: bool | jax.Array
    top_k: bool | jax.Array
    top_p: bool | jax.Array
    min_p: bool | jax.Array


class Rows(NamedTuple):
    """The settings of a batch, one row a request: what `sample` reads at run time.

    temperature, top_p, min_p: [B] float32; temperature 0 is greedy.
    top_k: [B] int32, the vocabulary's size if off.
    seed: [B, 2] uint32, low and high word.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    seed: jax.Array


def batch(settings: Sequence[Sampling], vocab_size: int) -> tuple[Filters, Rows]:
    """The settings of the rows of a batch in the form that `sample` takes."""
    drawn = [s for s in settings if not s.greedy]
    filters = Filters(
        draw=bool(drawn),
        top_k=any(s.top_k is not None and s.top_k < vocab_size for s in drawn),
        top_p=any(s.top_p < 1 for s in drawn),
        min_p=any(s.min_p > 0 for s in drawn),
    )
    rows = Rows(
        temperature=np.array([0 if s.greedy else s.temperature for s in settings], np.float32),
        top_k=np.array([min(s.top_k or vocab_size, vocab_size) for s in settings], np.int32),
        top_p=np.array([s.top_p for s in settings], np.float32),
        min_p=np.array([s.min_p for s in settings], np.float32),
        seed=np.array([(s.seed & 0xFFFFFFFF, s.seed >> 32) for s in settings], np.uint32),
    )
    return filters, rows


def needed(rows: Rows, vocab_size: int) -> Filters:
    """What the rows need, as data: `batch` tells it before they become arrays."""
    drawn = rows.temperature > 0
    return Filters(
        draw=jnp.any(drawn),
        top_k=jnp.any(drawn & (rows.top_k < vocab_size)),
        top_p=jnp.any(drawn & (rows.top_p < 1)),
        min_p=jnp.any(drawn & (rows.min_p > 0)),
    )


def _only_if(wanted: bool | jax.Array, change: Callable[[jax.Array], jax.Array], x: jax.Array):
    """`change(x)` if it is wanted, which may be data; else x."""
    if isinstance(wanted, bool):
        return change(x) if wanted else x
    return jax.lax.cond(wanted, change, lambda x: x, x)


def sample(
    logits: jax.Array,
    rows: Rows,
    positions: jax.Array,
    filters: Filters,
    allowed: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Chooses one token a row.

    Args:
      logits: [B, V], any floating dtype; NaN counts as minus infinity.
      rows: the settings.
      positions: [B] int32, index in its sequence of the token to choose; with the seed, it decides
        the draw.
      filters: what the rows need.
      allowed: whether any row is bound to a part of the vocabulary (bool []), and the parts,
        uint32 [B, ceil(V / 32)]: token t of a row is allowed if bit t % 32 of word t // 32 is set.

    Returns:
      tokens [B] int32, and their log-probabilities [B] float32 under the model itself (temperature
      1, nothing filtered). A row without a finite logit gives token 0 and minus infinity.
    """
    logits = jnp.where(jnp.isnan(logits), -jnp.inf, logits)
    narrow = logits.astype(jnp.float32)
    if allowed is not None:
        logits = _only_if(allowed[0], lambda x: _mask(x, allowed[1]), logits)
    # As argmax finds it, in two passes that vectorise on CPU, which is twice as fast there.
    place = jnp.where(logits == logits.max(-1, keepdims=True), jnp.arange(logits.shape[1]), 2**30)
    tokens = jnp.min(place, axis=-1).astype(jnp.int32)

    def draw(tokens: jax.Array) -> jax.Array:
        greedy, free = rows.temperature <= 0, logits.astype(jnp.float32)
        # Relative to the largest, a small temperature sends all others to minus infinity, not both.
        most = jnp.max(free, axis=-1, keepdims=True)
        below = free - jnp.where(jnp.isfinite(most), most, 0)
        kept = keep(below / jnp.where(greedy, 1, rows.temperature)[:, None], rows, filters)
        return jnp.where(greedy, tokens, _draw(kept, rows.seed, positions))

    tokens = _only_if(filters.draw, draw, tokens)
    chosen = jnp.take_along_axis(narrow, tokens[:, None], axis=-1)[:, 0]
    total = jax.nn.logsumexp(narrow, axis=-1)
    return tokens, jnp.where(jnp.isfinite(total), chosen - total, -jnp.inf)


def _mask(logits: jax.Array, words: jax.Array) -> jax.Array:
    """Minus infinity where a token's bit is not set; logits [B, V], words [B, ceil(V / 32)]."""
    bits = (words[:, :, None] >> jnp.arange(32, dtype=jnp.uint32)) & 1
    bits = bits.reshape(len(words), -1)[:, : logits.shape[1]]
    return jnp.where(bits == 1, logits, -jnp.inf)


def best(logits: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """The `count` likeliest tokens of each row: ids [B, count] int32, most likely first, and their
    log-probabilities [B, count] float32 under the model itself."""
    narrow = jnp.where(jnp.isnan(logits), -jnp.inf, logits).astype(jnp.float32)
    values, ids = jax.lax.top_k(narrow, count)
    return ids.astype(jnp.int32), values - jax.nn.logsumexp(narrow, axis=-1, keepdims=True)


def keep(logits: jax.Array, rows: Rows, filters: Filters) -> jax.Array:
    """Minus infinity where a filter drops a token; float32 logits [B, V], after temperature."""

    def top_k(logits: jax.Array) -> jax.Array:
        at_least = largest_set(logits, jnp.ones_like(logits), rows.top_k.astype(jnp.float32))
        return jnp.where(logits >= at_least[:, None], logits, -jnp.inf)

    def top_p(logits: jax.Array) -> jax.Array:
        at_least = largest_set(logits, jax.nn.softmax(logits, axis=-1), rows.top_p)
        at_least = jnp.where(rows.top_p < 1, at_least, -jnp.inf)  # p = 1 drops nothing at all
        return jnp.where(logits >= at_least[:, None], logits, -jnp.inf)

    def min_p(logits: jax.Array) -> jax.Array:
        most = jnp.max(logits, axis=-1, keepdims=True)
        return jnp.where(logits >= most + jnp.log(rows.min_p)[:, None], logits, -jnp.inf)

    logits = _only_if(filters.top_k, top_k, logits)
    logits = _only_if(filters.top_p, top_p, logits)
    return _only_if(filters.min_p, min_p, logits)


def largest_set(logits: jax.Array, weights: jax.Array, enough: jax.Array) -> jax.Array:
    """The highest threshold above which the logits of a row weigh enough.

    Args:
      logits: [B, V] float32.
      weights: [B, V] float32, not negative.
      enough: [B] float32.

    Returns:
      [B] float32: the largest t with sum(weights[logits >= t]) >= enough; minus infinity if the
      whole row is not enough.
    """
    ranks = _rank(logits)

    def halve(bit: jax.Array, found: jax.Array) -> jax.Array:
        higher = found | (jnp.uint32(1) << (31 - bit).astype(jnp.uint32))
        weight = jnp.sum(jnp.where(ranks >= higher[:, None], weights, 0), axis=-1)
        return jnp.where(weight >= enough, higher, found)

    found = jax.lax.fori_loop(0, 32, halve, jnp.zeros(logits.shape[:1], jnp.uint32))
    return jnp.where(found < _rank(jnp.float32(-jnp.inf)), -jnp.inf, _unrank(found))


def _rank(x: jax.Array) -> jax.Array:
    """uint32 in the same order as the float32: sign bit flipped, negatives complemented."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _unrank(rank: jax.Array) -> jax.Array:
    bits = jnp.where(rank >> 31 == 1, rank & jnp.uint32((1 << 31) - 1), ~rank)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _draw(logits: jax.Array, seeds: jax.Array, positions: jax.Array) -> jax.Array:
    """A draw from the softmax of each row, [B, V] -> [B] int32, in two steps by the Gumbel trick.

    First a block of the vocabulary by its mass, then a token in it: that needs noise for
    V / BLOCK + BLOCK numbers instead of V.
    """
    size = logits.shape[-1]
    blocks = -(-size // BLOCK)
    padding = ((0, 0), (0, blocks * BLOCK - size))
    logits = jnp.pad(logits, padding, constant_values=-jnp.inf).reshape(-1, blocks, BLOCK)

    def row(logits: jax.Array, seed: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), seed[0]), seed[1])
        noise = jax.random.gumbel(jax.random.fold_in(key, position), (blocks + BLOCK,))
        block = jnp.argmax(jax.nn.logsumexp(logits, axis=-1) + noise[:blocks])
        return block * BLOCK + jnp.argmax(logits[block] + noise[blocks:])

    return jax.vmap(row)(logits, seeds, positions).astype(jnp.int32)
