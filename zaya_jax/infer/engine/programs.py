"""The two programs of the engine, as pure functions of explicit state.

`prefill` reads a chunk of one prompt, `decode` adds tokens to a batch of rows. Both take the pool,
write to it, and give it back. What differs between two calls of one shape is data, so that each
shape is compiled once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zaya_jax.config import Model
from zaya_jax.infer import sampler
from zaya_jax.infer.engine.pool import Pool
from zaya_jax.infer.sampler import Rows
from zaya_jax.model import functional
from zaya_jax.model.attention import Tokens
from zaya_jax.model.attention.paged import pages_of, wanted_pages
from zaya_jax.model.decoder import Decoder
from zaya_jax.model.functional import Biases, Params
from zaya_jax.model.norm import rms_norm

SCORED = 16
"""Tokens of a prompt whose logits exist at once when it is scored."""


class Asked(NamedTuple):
    """What the rows of a call ask of the sampler.

    rows: its settings.
    bound: bool [], whether any row may choose from a part of the vocabulary only.
    allowed: uint32 [B, ceil(V / 32)], see `sampler.sample`; read if `bound`.
    best: bool [], whether any row wants its likeliest tokens.
    """

    rows: Rows
    bound: jax.Array
    allowed: jax.Array
    best: jax.Array


class Chosen(NamedTuple):
    """tokens int32 and logprobs float32, [...]; the n likeliest tokens, best int32 and their
    best_logprobs float32, [..., n], zeros where no row asked."""

    tokens: jax.Array
    logprobs: jax.Array
    best: jax.Array
    best_logprobs: jax.Array


def forward(
    decoder: Decoder,
    pool: Pool,
    table: jax.Array,
    tokens: jax.Array,
    lengths: jax.Array,
    live: jax.Array,
) -> tuple[jax.Array, Pool]:
    """Runs the network over new tokens.

    Args:
      table: [B, N] int32 pages of each row.
      tokens: [B, S] int32; S is 1, or a chunk that begins at a border of pages.
      lengths: [B] int32 tokens that each row has in its pages.
      live: [B, S] bool; False for rows that rest and for padding on the right.

    Returns:
      Hidden states [B, S, D] after the final norm, and the pool with the new tokens.
    """
    B, S = tokens.shape
    positions = lengths[:, None] + jnp.arange(S, dtype=jnp.int32)
    place = Tokens(None, positions, live, lengths)
    stream, state = decoder.embed(tokens), None
    layers, routes = [], []
    norms = [block.input_norm[...] for block in decoder.layers]
    x = decoder.layers[0].normed(stream)
    for block, layer, after in zip(decoder.layers, pool.layers, [*norms[1:], None], strict=True):
        held = layer._replace(table=table)
        # The norm that the next layer reads is made by the merge at the end of this one.
        stream, state, stats, written, x = block.forward(
            stream, x, state, place, held, next_norm=after
        )
        assert written is not None
        layers.append(written._replace(table=None))
        routes.append(stats.index)
    hidden = rms_norm(
        stream, decoder.final_norm[...], decoder.model.norm_eps, decoder.numerics, read_by="logits"
    )
    chosen = jnp.stack(routes, axis=2).astype(pool.routes.dtype)  # [B, S, L, k]
    room = pool.routes.shape[1]
    pages = pages_of(table, lengths, wanted_pages(live, room), room)
    if S == 1:
        kept = pool.routes.at[pages[:, 0], lengths % room].set(chosen[:, 0])
    else:
        kept = pool.routes.at[pages.reshape(-1)].set(chosen.reshape(-1, room, *chosen.shape[2:]))
    return hidden, Pool(tuple(layers), kept)


def choose(
    decoder: Decoder, hidden: jax.Array, positions: jax.Array, asked: Asked, top: int
) -> Chosen:
    """The next token of each row: hidden [B, D]; positions [B] of the tokens to choose."""
    logits = decoder.logits(hidden)
    filters = sampler.needed(asked.rows, logits.shape[-1])
    bound = (asked.bound, asked.allowed)
    tokens, logprobs = sampler.sample(logits, asked.rows, positions, filters, bound)
    return Chosen(tokens, logprobs, *_best(asked.best, logits, top))


def _best(wanted: jax.Array, logits: jax.Array, top: int) -> tuple[jax.Array, jax.Array]:
    shape = (len(logits), top)
    nothing = (jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32))
    return jax.lax.cond(wanted, lambda: sampler.best(logits, top), lambda: nothing)


def prefill(
    model: Model,
    top: int,
    params: Params,
    biases: Biases,
    pool: Pool,
    table: jax.Array,
    tokens: jax.Array,
    start: jax.Array,
    count: jax.Array,
    scored: jax.Array,
    asked: Asked,
) -> tuple[Pool, Chosen, Chosen]:
    """Reads a chunk of one prompt and chooses the token after it.

    Args:
      model, top: static; `top` likeliest tokens are given where they are wanted.
      pool: donated.
      table: [1, N] int32; N * T = S if the chunk begins its prompt, else it holds all before too.
      tokens: [S + 1] int32, padded, the last of them the first of the next chunk.
      start: [] int32 tokens that were read before, a multiple of T.
      count: [] int32 live tokens of the chunk.
      scored: bool [], whether each token of the chunk is to be scored.
      asked: of one row.

    Returns:
      The pool; the choice [1]; the scores [S] of the tokens behind each of the chunk, as `tokens`
      has them.
    """
    decoder = functional.merge(model, params, biases)
    size = len(tokens) - 1
    live = (jnp.arange(size) < count)[None]
    hidden, pool = forward(decoder, pool, table, tokens[None, :-1], start[None], live)
    last = jax.lax.dynamic_slice_in_dim(hidden[0], jnp.maximum(count - 1, 0), 1)
    chosen = choose(decoder, last, (start + count)[None], asked, top)

    def score() -> Chosen:
        def few(inputs: tuple[jax.Array, jax.Array]) -> Chosen:
            hidden, targets = inputs
            logits = decoder.logits(hidden).astype(jnp.float32)
            found = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
            logprobs = found - jax.nn.logsumexp(logits, axis=-1)
            return Chosen(targets, logprobs, *_best(asked.best, logits, top))

        blocks = jnp.pad(hidden[0], ((0, -size % SCORED), (0, 0))).reshape(
            -1, SCORED, hidden.shape[-1]
        )
        targets = jnp.pad(tokens[1:], (0, -size % SCORED)).reshape(-1, SCORED)
        scores = jax.lax.map(few, (blocks, targets))
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], scores)

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(score))
    return pool, chosen, jax.lax.cond(scored, score, lambda: nothing)


class Batch(NamedTuple):
    """Rows that decode.

    table: [B, N] int32 pages of each row.
    tokens: [B] int32 the last token of each, not yet in its pages.
    lengths: [B] int32 tokens in its pages.
    limits: [B] int32 tokens that it may get in this call; 0 for a row that rests.
    ends: [B] bool, whether a stop token ends it.
    """

    table: jax.Array
    tokens: jax.Array
    lengths: jax.Array
    limits: jax.Array
    ends: jax.Array


def decode(
    model: Model,
    top: int,
    most: int,
    params: Params,
    biases: Biases,
    pool: Pool,
    batch: Batch,
    stop_ids: jax.Array,
    asked: Asked,
) -> tuple[Pool, Chosen]:
    """Adds tokens to every row until it has as many as its limit, or a stop token.

    Args:
      model, top, most: static; `most` tokens a row at most.
      pool: donated.
      stop_ids: [n] int32.
      asked: of all rows.

    Returns:
      The pool, and the choices [most, B]; a token is -1 where a row was not live.
    """
    rows = batch.tokens.shape[0]
    decoder = functional.merge(model, params, biases)

    def go_on(carry) -> jax.Array:
        i, _, _, _, limits, _ = carry
        return (i < most) & jnp.any(limits > 0)

    def go(carry):
        i, pool, tokens, lengths, limits, chosen = carry
        live = limits > 0
        hidden, pool = forward(decoder, pool, batch.table, tokens[:, None], lengths, live[:, None])
        lengths = lengths + live
        new = choose(decoder, hidden[:, 0], lengths, asked, top)
        given = new._replace(tokens=jnp.where(live, new.tokens, -1))
        chosen = jax.tree.map(lambda all_, one: all_.at[i].set(one), chosen, given)
        stopped = batch.ends & jnp.any(new.tokens[:, None] == stop_ids, axis=-1)
        limits = jnp.where(live & ~stopped, limits - 1, 0)
        return i + 1, pool, new.tokens, lengths, limits, chosen

    empty = Chosen(
        jnp.full((most, rows), -1, jnp.int32),
        jnp.zeros((most, rows), jnp.float32),
        jnp.zeros((most, rows, top), jnp.int32),
        jnp.zeros((most, rows, top), jnp.float32),
    )
    carry = (jnp.int32(0), pool, batch.tokens, batch.lengths, batch.limits, empty)
    _, pool, _, _, _, chosen = jax.lax.while_loop(go_on, go, carry)
    return pool, chosen
