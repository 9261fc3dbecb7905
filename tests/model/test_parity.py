"""Our network against transformers' Zaya, with every tensor spread out (see `tests.oracles`)."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from tests.oracles import torch
from zaya_jax.model import cache as caches
from zaya_jax.model.functional import declarations, merge

# name -> (shape, batch, length, tokens of left padding per row)
DRAWS = {
    "plain": (dict(), 2, 17, None),
    "wide_first_conv": (dict(kernels=(4, 2), heads=(4, 2)), 2, 13, None),
    "wide_second_conv": (dict(kernels=(2, 5), heads=(2, 1)), 2, 11, None),
    "three_kv_heads": (dict(heads=(6, 3), head_dim=8, kernels=(3, 3)), 1, 23, None),
    "sliding": (dict(layers=4, pattern=("full", "sliding"), window=5), 2, 21, None),
    "all_sliding": (dict(pattern=("sliding",), window=3, heads=(4, 4)), 2, 9, None),
    "left_padding": (dict(layers=4), 3, 15, (0, 4, 9)),
    "padded_sliding": (dict(kernels=(3, 4), pattern=("sliding",), window=6), 3, 19, (7, 0, 1)),
    "one_token": (dict(heads=(2, 2)), 3, 1, None),
    "many_experts": (dict(experts=11, hidden=32, head_dim=32, heads=(3, 1)), 2, 31, None),
}


def drawn(*names, slow=()):
    """Draws as parameters of a test."""
    return [pytest.param(n, marks=[pytest.mark.slow] * (n in slow)) for n in names]


def inputs(draw, seed):
    """Random ids, the attention mask, HF position ids and our segment ids."""
    _, batch, length, left = DRAWS[draw]
    ids = np.random.default_rng(seed).integers(3, 97, (batch, length))
    mask = np.ones_like(ids)
    for row, n in enumerate(left or ()):
        mask[row, :n] = 0
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return ids, mask, positions


def oracle_forward(oracle, ids, mask, positions, **kw):
    return oracle(
        input_ids=torch.tensor(ids),
        attention_mask=None if mask.all() else torch.tensor(mask),
        position_ids=torch.tensor(positions),
        use_cache=False,
        **kw,
    ).logits


@functools.lru_cache
def settled(draw, least=1e-4):
    """Model, float32 oracle and inputs whose every routing decision has a margin of `least`.

    Closer than rounding noise, two correct programs may route differently; the margins are taken
    from the oracle in float64. Returns also its float64 logits and biased probabilities.
    """
    shape = DRAWS[draw][0]
    model = oracles.tiny_model(**shape)
    for seed in range(200):
        oracle = oracles.torch_model(model, seed)
        ids, mask, positions = inputs(draw, seed)
        oracle = oracle.double()
        records, handles = oracles.routes(oracle)
        with oracles.widened(), torch.no_grad():
            logits = oracle_forward(oracle, ids, mask, positions).numpy()
        for handle in handles:
            handle.remove()
        biased = np.stack(records)
        margins = oracles.margin(biased)[:, mask.astype(bool)]
        if margins.min() > least:
            return model, oracle, (ids, mask, positions), logits, biased
    raise AssertionError("no draw with settled routes")


def ours(model, oracle, ids, mask, dtype):
    model = dataclasses.replace(model, param_dtype=dtype, activation_dtype=dtype)
    params, biases = oracles.from_torch(model, oracle)
    segments = None if mask.all() else jnp.asarray(mask, jnp.int32)

    @jax.jit
    def forward(params, biases, ids):
        decoder = merge(model, params, biases)
        out = decoder(ids, segments)
        return decoder.logits(out.hidden), out.stats.index

    logits, index = forward(params, biases, jnp.asarray(ids))
    return np.asarray(logits), np.asarray(index)[..., 0]


def gap(a, b, mask):
    """max |a - b| over real tokens, relative to the largest logit."""
    real = mask.astype(bool)
    return np.abs(a - b)[real].max() / np.abs(b)[real].max()


@pytest.mark.parametrize("draw", drawn(*DRAWS))
def test_logits_and_routes_in_float64(draw):
    model, oracle, (ids, mask, _), expected, biased = settled(draw)
    with jax.enable_x64(True):
        logits, index = ours(model, oracle, ids, mask, "float64")
    real = mask.astype(bool)
    assert gap(logits, expected, mask) < 1e-9
    np.testing.assert_array_equal(index[:, real], biased.argmax(-1)[:, real])
    used = np.unique(index[:, real])
    assert len(used) > 1, "a draw that uses one expert only tests no routing"


@pytest.mark.parametrize("draw", drawn(*DRAWS))
def test_logits_and_routes_in_float32(draw, record_property):
    model, oracle, (ids, mask, positions), _, biased = settled(draw)
    oracle = oracle.float()
    oracle.set_attn_implementation("eager")
    with torch.no_grad():
        eager = oracle_forward(oracle, ids, mask, positions).numpy()
        oracle.set_attn_implementation("sdpa")
        sdpa = oracle_forward(oracle, ids, mask, positions).numpy()
    logits, index = ours(model, oracle, ids, mask, "float32")
    real = mask.astype(bool)
    own = gap(sdpa, eager, mask)
    found = gap(logits, eager, mask)
    record_property("gap", f"{found:.1e}")
    print(f"{draw}: ours against eager {found:.1e}; transformers' own sdpa against eager {own:.1e}")
    assert found < 2e-6
    np.testing.assert_array_equal(index[:, real], biased.argmax(-1)[:, real])


@pytest.mark.parametrize(
    "draw", drawn(*DRAWS, slow=set(DRAWS) - {"padded_sliding", "three_kv_heads", "sliding"})
)
def test_gradient_of_every_tensor(draw):
    model, oracle, (ids, mask, positions), _, _ = settled(draw)
    oracle = oracle.float()
    oracle.zero_grad()
    targets = np.random.default_rng(7).integers(0, 97, ids.shape)
    logits = oracle_forward(oracle, ids, mask, positions)
    real = torch.tensor(mask, dtype=torch.bool)
    torch.nn.functional.cross_entropy(logits[real], torch.tensor(targets)[real]).backward()

    params, biases = oracles.from_torch(model, oracle)
    expected, _ = oracles.from_torch(model, oracle, grads=True)

    @jax.jit
    def gradient(params):
        def loss(params):
            decoder = merge(model, params, biases)
            out = decoder(jnp.asarray(ids), jnp.asarray(mask, jnp.int32))
            logp = jax.nn.log_softmax(decoder.logits(out.hidden))
            logp = jnp.take_along_axis(logp, jnp.asarray(targets)[..., None], -1)[..., 0]
            return -jnp.sum(logp * mask) / mask.sum()

        return jax.grad(loss)(params)

    found = gradient(params)
    assert set(found) == set(declarations(model))
    errors = {
        path: np.linalg.norm(found[path] - g) / (np.linalg.norm(g) + 1e-30)
        for path, g in expected.items()
    }
    worst = max(errors, key=errors.get)
    assert errors[worst] < 2e-5, (worst, errors[worst])


@pytest.mark.parametrize(
    "draw", drawn(*DRAWS, slow=set(DRAWS) - {"wide_first_conv", "padded_sliding"})
)
def test_cached_decoding_gives_the_oracles_greedy_tokens(draw):
    """64 tokens: `generate` of transformers, left padded, against prefill and single steps here,
    right padded."""
    shape, batch, length, left = DRAWS[draw]
    model = oracles.tiny_model(**shape)
    oracle = oracles.torch_model(model, 5)
    ids, mask, _ = inputs(draw, 5)
    new = 64
    with torch.no_grad():
        expected = oracle.generate(
            torch.tensor(ids),
            attention_mask=torch.tensor(mask),
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
        )[:, length:].numpy()

    params, biases = oracles.from_torch(model, oracle)
    lengths = mask.sum(1)
    prompts = np.stack([np.roll(row, -(length - n)) for row, n in zip(ids, lengths, strict=True)])
    live = jnp.asarray(np.arange(length) < lengths[:, None], jnp.int32)

    @jax.jit
    def prefill(ids):
        decoder = merge(model, params, biases)
        out = decoder(ids, live, cache=caches.empty(model, batch, length + new))
        last = jnp.take_along_axis(out.hidden, jnp.asarray(lengths)[:, None, None] - 1, axis=1)
        return decoder.logits(last[:, 0]).argmax(-1), out.cache

    @jax.jit
    def step(token, cache):
        decoder = merge(model, params, biases)
        out = decoder(token[:, None], cache=cache)
        return decoder.logits(out.hidden[:, 0]).argmax(-1), out.cache

    token, cache = prefill(jnp.asarray(prompts))
    found = [token]
    for _ in range(new - 1):
        token, cache = step(token, cache)
        found.append(token)
    np.testing.assert_array_equal(np.stack(found, 1), expected)


def test_scanned_layers_compute_what_unrolled_ones_do():
    from zaya_jax.model.forms import convert

    model = oracles.tiny_model(layers=6, pattern=("full", "sliding"), window=4)
    oracle = oracles.torch_model(model, 3)
    params, biases = oracles.from_torch(model, oracle)
    scanned, s_params, s_biases = convert(model, params, biases, "scan")
    ids, _, _ = inputs("plain", 3)
    outs = [
        jax.jit(lambda p, b, m=m: merge(m, p, b)(jnp.asarray(ids)))(p, b)
        for m, p, b in ((model, params, biases), (scanned, s_params, s_biases))
    ]
    np.testing.assert_allclose(outs[0].hidden, outs[1].hidden, atol=2e-5)
    np.testing.assert_array_equal(outs[0].stats.index, outs[1].stats.index)
    back = convert(scanned, s_params, s_biases, "unroll")
    assert all((back[1][k] == params[k]).all() for k in params)
