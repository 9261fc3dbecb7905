"""The two programs of cached decoding, as pure functions: read the prompts, and go on by tokens."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zaya_jax.config import Model
from zaya_jax.infer.sampler import Filters, Rows, sample
from zaya_jax.model import cache as caches
from zaya_jax.model import functional
from zaya_jax.model.block import RouterStats
from zaya_jax.model.functional import Biases, Params

MOST_STEPS = 16
"""Tokens that one call of `decode` may add: the host's share of a token's time, divided by this."""


class State(NamedTuple):
    """What goes from one call to the next: the cache, and the last tokens, not yet in it.

    tokens: [B] int32.
    """

    cache: caches.Cache
    tokens: jax.Array


class Chosen(NamedTuple):
    """The tokens that a call chose, and their log-probabilities.

    tokens: [N, B] int32, -1 where a row was not live. logprobs: [N, B] float32.
    """

    tokens: jax.Array
    logprobs: jax.Array


def prefill(
    model: Model,
    filters: Filters,
    capacity: int,
    params: Params,
    biases: Biases,
    tokens: jax.Array,
    counts: jax.Array,
    rows: Rows,
) -> tuple[State, Chosen]:
    """Runs the prompts into an empty cache and chooses the token after each.

    Args:
      model, filters, capacity: static; capacity is that of the cache.
      tokens: [B, S] int32, prompts with padding on the right.
      counts: [B] int32 length of each prompt; 0 for an idle row.
      rows: settings of the sampler.

    Returns:
      The state, and the choices with N = 1.
    """
    decoder = functional.merge(model, params, biases)
    batch, length = tokens.shape
    live = jnp.arange(length) < counts[:, None]
    cache = caches.empty(model, batch, capacity)
    out = decoder(tokens, live.astype(jnp.int32), cache=cache)
    assert out.cache is not None
    last = jnp.maximum(counts - 1, 0)[:, None, None]
    hidden = jnp.take_along_axis(out.hidden, last, axis=1)[:, 0]
    chosen, logprobs = sample(decoder.logits(hidden), rows, counts, filters)
    return State(out.cache, chosen), Chosen(jnp.where(counts > 0, chosen, -1)[None], logprobs[None])


def step(
    model: Model,
    filters: Filters,
    params: Params,
    biases: Biases,
    state: State,
    live: jax.Array,
    rows: Rows,
) -> tuple[State, jax.Array, RouterStats]:
    """Adds one token to every live row.

    Args:
      live: [B] bool; the cache of the other rows rests, and no expert computes for them.

    Returns:
      The state, the log-probabilities [B] float32 of its tokens, and how they were routed.
    """
    decoder = functional.merge(model, params, biases)
    out = decoder(state.tokens[:, None], live.astype(jnp.int32)[:, None], cache=state.cache)
    assert out.cache is not None
    # The cache now holds `lengths` tokens; the one to choose has that index.
    tokens, logprobs = sample(decoder.logits(out.hidden[:, 0]), rows, out.cache.lengths, filters)
    return State(out.cache, tokens), logprobs, out.stats


def decode(
    model: Model,
    filters: Filters,
    params: Params,
    biases: Biases,
    state: State,
    remaining: jax.Array,
    steps: jax.Array,
    stop_ids: jax.Array,
    rows: Rows,
) -> tuple[State, Chosen]:
    """Adds up to `steps` tokens to every live row.

    A row lives while it has tokens `remaining` and has chosen none of `stop_ids`; it is never
    routed to an expert afterwards and its cache rests. The loop ends when no row lives.

    Args:
      model, filters: static.
      state: donated.
      remaining: [B] int32 tokens a row may still get; 0 for a row that is idle.
      steps: [] int32, at most MOST_STEPS.
      stop_ids: [n] int32.
      rows: settings of the sampler.

    Returns:
      The state, and the choices with N = MOST_STEPS.
    """
    shape = (MOST_STEPS, remaining.shape[0])
    empty = Chosen(jnp.full(shape, -1, jnp.int32), jnp.zeros(shape, jnp.float32))

    def go_on(carry) -> jax.Array:
        i, _, remaining, _ = carry
        return (i < steps) & jnp.any(remaining > 0)

    def go(carry):
        i, state, remaining, chosen = carry
        live = remaining > 0
        state, logprobs, _ = step(model, filters, params, biases, state, live, rows)
        chosen = Chosen(
            chosen.tokens.at[i].set(jnp.where(live, state.tokens, -1)),
            chosen.logprobs.at[i].set(logprobs),
        )
        stopped = jnp.any(state.tokens[:, None] == stop_ids, axis=-1)
        return i + 1, state, jnp.where(live & ~stopped, remaining - 1, 0), chosen

    carry = (jnp.int32(0), state, remaining, empty)
    _, state, _, chosen = jax.lax.while_loop(go_on, go, carry)
    return state, chosen
