"""The engine with quantized weights, and with keys and values in int8."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from zaya_jax.infer import quantize
from zaya_jax.infer.engine import Engine, Options, Request
from zaya_jax.infer.engine.pool import page_bytes
from zaya_jax.infer.quantize import Scheme
from zaya_jax.model import functional
from zaya_jax.train.throughput import compilations

CAPACITY = 48
OPTIONS = Options(
    rows=2, row_sizes=(2,), page=8, capacity=CAPACITY, chunks=(16,), prefill_tokens=16, steps=3
)
PROMPTS = [[7, 8, 9], list(range(20, 57))]  # within a chunk, and over three


@pytest.fixture(scope="module")
def loaded(network):
    return network()


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, biases, tokens):
    decoder = functional.merge(model, params, biases)
    return jax.nn.log_softmax(decoder.logits(decoder(tokens).hidden)[0])


def scores(loaded, tokens):
    """Log-probabilities of every token but the first, by the whole network."""
    row = np.array([[*tokens, *[0] * (CAPACITY - len(tokens))]], np.int32)
    found = np.asarray(run(loaded.model, loaded.params, loaded.biases, row))
    return found[np.arange(len(tokens) - 1), tokens[1:]]


def gaps(engine, loaded):
    """How far the engine's log-probabilities are from those of the whole network."""
    found = []
    for prompt in PROMPTS:
        [done] = engine.generate([Request(prompt, 8, score_prompt=True, ignore_eos=True)])
        told = [*done.prompt_logprobs, *done.logprobs]
        found.append(np.abs(np.array(told) - scores(loaded, [*prompt, *done.tokens])))
    return found


def test_quantized_weights_are_served_and_swapped(loaded):
    small = quantize.quantize(loaded, Scheme("int8", "all"))
    engine = Engine(small, dataclasses.replace(OPTIONS, batch_invariant=True))
    engine.warm_up()
    scores(small, PROMPTS[0])  # compiles
    with compilations() as counted:
        before = gaps(engine, small)
        assert max(gap.max() for gap in before) < 1e-3
    assert counted.count == 0
    # Alone or in company, the same bits.
    requests = [Request(prompt, 8, ignore_eos=True) for prompt in PROMPTS]
    company = engine.generate(requests)
    alone = [engine.generate([request])[0] for request in requests]
    assert [r.logprobs for r in company] == [r.logprobs for r in alone]
    # A trainer's weights, in floating point, become what the engine has.
    with compilations():
        engine.swap({name: 2 * value for name, value in loaded.params.items()})
        engine.swap(loaded.params)
    with compilations() as counted:
        after = gaps(engine, small)
    assert counted.count == 0
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b)
    assert quantize.kinds(engine.loaded.params) == {"int8"}


def test_a_cache_of_int8_is_smaller_and_close(loaded):
    narrow = dataclasses.replace(OPTIONS, cache_dtype="int8")
    engine = Engine(loaded, narrow)
    engine.warm_up()
    scores(loaded, PROMPTS[0])
    assert engine._runner._pool.layers[0].k.dtype == np.int8
    with compilations() as counted:
        short, long = gaps(engine, loaded)
    assert counted.count == 0
    # A chunk sees its own keys as they were: what it scores of a first chunk is exact.
    assert long[:16].max() < 1e-3
    rest = np.concatenate([short, long[16:]])
    assert 1e-6 < rest.mean() < 0.05
    a = loaded.model.attention
    saved = loaded.model.num_layers * 2 * a.kv_heads * OPTIONS.page * (3 * a.head_dim - 4)
    wide, small = (page_bytes(loaded.model, OPTIONS.page, c) for c in (None, "int8"))
    assert wide - small == saved


def test_a_prefix_that_is_known_changes_nothing(loaded):
    """Batch-invariant with a cache of int8: what is shared was rounded when it was written."""
    options = dataclasses.replace(OPTIONS, cache_dtype="int8", batch_invariant=True)
    engine = Engine(loaded, options)
    [first] = engine.generate([Request(PROMPTS[1], 6, ignore_eos=True)])
    [again] = engine.generate([Request(PROMPTS[1], 6, ignore_eos=True)])
    assert again.cached_tokens == 32 and not first.cached_tokens
    assert (first.tokens, first.logprobs) == (again.tokens, again.logprobs)
