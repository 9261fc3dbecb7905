"""The sampler against transformers' logits warpers, and what a request may rely on."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.errors import UserError
from zaya_jax.infer import sampler
from zaya_jax.infer.sampler import Sampling

V = 1200  # more than two blocks, not a multiple of them
RUN = jax.jit(sampler.sample, static_argnums=3)
KEEP = jax.jit(sampler.keep, static_argnums=2)


def logits_of(seed: int, rows: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (rows, V)).astype(np.float32)


def draw(logits, settings, positions=None):
    filters, rows = sampler.batch(settings, logits.shape[-1])
    positions = np.zeros(len(settings), np.int32) if positions is None else positions
    tokens, logprobs = RUN(logits, rows, np.asarray(positions, np.int32), filters)
    return np.asarray(tokens), np.asarray(logprobs)


def kept(logits, setting) -> np.ndarray:
    filters, rows = sampler.batch([setting] * len(logits), logits.shape[-1])
    return np.isfinite(KEEP(logits / np.float32(setting.temperature), rows, filters))


@given(
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    top_k=st.sampled_from([None, 1, 7, V - 1, V, V + 5]),
    top_p=st.sampled_from([0.05, 0.6, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_keeps_what_the_warpers_of_transformers_keep(seed, temperature, top_k, top_p, min_p):
    torch = pytest.importorskip("torch")
    warpers = pytest.importorskip("transformers.generation.logits_process")
    logits = logits_of(seed)
    scores = torch.tensor(logits)
    chain = [warpers.TemperatureLogitsWarper(temperature)]
    if top_k is not None:
        chain.append(warpers.TopKLogitsWarper(top_k))
    if top_p < 1:
        chain.append(warpers.TopPLogitsWarper(top_p))
    if min_p > 0:
        chain.append(warpers.MinPLogitsWarper(min_p))
    for warper in chain:
        scores = warper(None, scores)
    ours = kept(logits, Sampling(temperature, top_k, top_p, min_p))
    np.testing.assert_array_equal(ours, np.isfinite(scores.numpy()))


MIXED = [
    Sampling(),
    Sampling(1.0, seed=1),
    Sampling(0.7, top_k=4, seed=2),
    Sampling(1.3, top_p=0.8, seed=3),
    Sampling(1.0, min_p=0.1, seed=4),
]


@pytest.mark.parametrize("settings", [MIXED, MIXED[:1] * 5, MIXED[1:2] * 5, MIXED[2:3] * 5])
def test_filters_that_are_data_choose_as_static_ones(settings):
    logits, positions = logits_of(4, rows=5), np.arange(5, dtype=np.int32)

    @jax.jit
    def run(logits, rows):
        return sampler.sample(logits, rows, positions, sampler.needed(rows, V))

    tokens, logprobs = run(logits, sampler.batch(settings, V)[1])
    expected = draw(logits, settings, positions)
    np.testing.assert_array_equal(tokens, expected[0])
    np.testing.assert_array_equal(logprobs, expected[1])


def test_a_row_that_is_bound_chooses_among_what_is_allowed():
    logits, positions = logits_of(6, rows=3), np.zeros(3, np.int32)
    words = np.full((3, -(-V // 32)), 0xFFFFFFFF, np.uint32)
    some = [33, 64, 1199]
    words[1:] = 0
    for token in some:
        words[1:, token // 32] |= np.uint32(1 << token % 32)
    filters, rows = sampler.batch([Sampling(), Sampling(), Sampling(1.0, top_k=2, seed=7)], V)
    run = jax.jit(sampler.sample, static_argnums=3)
    tokens, logprobs = run(logits, rows, positions, filters, (np.bool_(True), words))
    free, _ = run(logits, rows, positions, filters, (np.bool_(False), words))
    best = sorted(some, key=lambda token: logits[2, token])[-2:]
    assert tokens[0] == logits[0].argmax() and tokens[1] == max(some, key=lambda t: logits[1, t])
    assert tokens[2] in best and list(free[:2]) == list(logits[:2].argmax(-1))
    expected = jax.nn.log_softmax(logits)[np.arange(3), tokens]
    np.testing.assert_allclose(logprobs, expected, rtol=1e-5)  # of the model, not of what is left


def test_the_likeliest_tokens_come_with_the_models_log_probabilities():
    logits = logits_of(7)
    ids, logprobs = jax.jit(sampler.best, static_argnums=1)(logits, 4)
    expected = np.asarray(jax.nn.log_softmax(logits))
    np.testing.assert_array_equal(ids, np.argsort(-logits)[:, :4])
    np.testing.assert_allclose(logprobs, -np.sort(-expected)[:, :4], rtol=1e-5)


def test_temperature_zero_is_greedy_whatever_else_is_asked():
    logits = logits_of(0)
    drawn = Sampling(1.0, 5, 0.5, 0.5)
    tokens, logprobs = draw(logits, [Sampling(), Sampling(0, 5, 0.5, 0.5, 9), drawn])
    np.testing.assert_array_equal(tokens[:2], logits[:2].argmax(-1))
    expected = jax.nn.log_softmax(logits)[np.arange(3), tokens]
    np.testing.assert_allclose(logprobs, expected, rtol=1e-5)


@pytest.mark.parametrize("temperature", [1e-5, 1e-30, 1.2e-38, 1e-38, 1e-45, 1e-320])
def test_a_temperature_near_zero_chooses_as_zero_does(temperature):
    logits = logits_of(3)
    tokens, logprobs = draw(logits, [Sampling(temperature, 5, 0.5, 0.1)] * 3)
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    assert np.isfinite(logprobs).all()


def test_greedy_sees_differences_that_float32_does_not():
    with jax.enable_x64(True):
        logits = np.zeros((1, V))
        logits[0, 700], logits[0, 3] = 1 + 1e-12, 1
        assert draw(logits, [Sampling()])[0][0] == 700


def test_frequencies_are_those_of_the_filtered_softmax():
    logits = np.log(np.full((1, V), 1e-9, np.float32))
    mass = {2: 0.5, 600: 0.3, 1100: 0.2}  # in three blocks
    for token, share in mass.items():
        logits[0, token] = np.log(share)
    n = 4000
    settings = [Sampling(1.0, top_k=3, seed=s) for s in range(n)]
    tokens, _ = draw(np.repeat(logits, n, 0), settings)
    for token, share in mass.items():
        assert abs(np.mean(tokens == token) - share) < 4 * (share * (1 - share) / n) ** 0.5


def test_a_draw_depends_on_its_own_seed_and_position_only():
    logits = logits_of(1, rows=1)
    setting = Sampling(2.0, top_p=0.99, seed=2**40 + 5)
    alone = draw(logits, [setting], [17])
    others = [Sampling(1.0, top_k=4, seed=3), setting, Sampling(0.0), Sampling(0.3, seed=1)]
    crowd = draw(np.concatenate([logits_of(5), logits])[[0, 3, 1, 2]], others, [17, 17, 4, 17])
    assert (alone[0][0], alone[1][0]) == (crowd[0][1], crowd[1][1])
    many = [draw(logits, [setting], [position])[0][0] for position in range(12)]
    seeds = [
        draw(logits, [dataclasses.replace(setting, seed=s)], [17])[0][0]
        for s in (5, 6, 2**32 + 5, 2**40)
    ]
    assert len(set(many)) > 6 and len(set(seeds)) > 2


def test_rows_without_a_finite_logit_are_marked_and_harm_no_other():
    logits = logits_of(2)
    logits[0] = -np.inf
    logits[1] = np.nan
    for setting in (Sampling(), Sampling(0.7, 5, 0.5, 0.1), Sampling(1.2e-38, 5, 0.5, 0.1)):
        tokens, logprobs = draw(logits, [setting] * 3)
        assert (0 <= tokens).all() and (tokens < V).all()
        assert np.isneginf(logprobs[:2]).all() and np.isfinite(logprobs[2])


def test_nan_is_never_chosen():
    logits = np.full((1, V), -np.inf, np.float32)
    logits[0, 5], logits[0, 9] = np.nan, -3.0
    for setting in (Sampling(), Sampling(1.0, top_p=0.9)):
        tokens, logprobs = draw(logits, [setting])
        assert tokens[0] == 9 and abs(logprobs[0]) < 1e-6


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", 0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.5),
        ("min_p", 1.5),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_values_out_of_range_are_named(field, value):
    with pytest.raises(UserError, match=f"{field} = .*expected"):
        Sampling(**{field: value})
