"""A cache that is misused says so instead of giving wrong tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from tests.oracles import tiny_model
from zaya_jax.model import cache as caches
from zaya_jax.model.functional import init, merge

MODEL = tiny_model(layers=2)


def call(model, length, *, capacity=8, filled=False):
    def run():
        params, biases = init(model, jax.random.key(0))
        cache = caches.empty(MODEL, 1, capacity)
        decoder = merge(model, params, biases)
        if filled:
            cache = decoder(jnp.zeros((1, 3), jnp.int32), cache=cache).cache
        return decoder(jnp.zeros((1, length), jnp.int32), cache=cache).cache

    return jax.eval_shape(run)


def test_a_prefill_and_a_step_are_accepted():
    assert call(MODEL, 8).filled
    assert call(MODEL, 1, filled=True).filled


def test_a_filled_cache_takes_one_token_at_a_time():
    with pytest.raises(ValueError, match="one token at a time; got 2"):
        call(MODEL, 2, filled=True)


def test_a_prompt_longer_than_the_cache_is_refused():
    with pytest.raises(ValueError, match="prompt of 9 tokens for a cache of 8"):
        call(MODEL, 9)


def test_scanned_layers_name_the_way_out():
    with pytest.raises(ValueError, match="forms.convert"):
        call(tiny_model(layers=2, form="scan"), 4)
