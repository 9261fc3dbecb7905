"""Canaries: loops are found, text is spared, and what is flagged loses its reward."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.errors import UserError
from zaya_jax.rl.compressibility import Canary, Compressibility, loops, ratios
from zaya_jax.rl.gibberish import gibberish, logprob_threshold, rare_fractions

VOCAB = 262_272


def text(tokens: int, seed: int = 0) -> np.ndarray:
    """Ids as frequent as words are (Zipf)."""
    return np.minimum(np.random.default_rng(seed).zipf(1.15, tokens), VOCAB - 1)


@pytest.mark.parametrize("periods", [(1, 4), (5, 16), (17, 64), (65, 128)])
def test_loops_are_found_wherever_they_begin(periods):
    """Nearly always: at level 1 zlib passes over some, by where their period falls in a chunk."""
    found, rng = [], np.random.default_rng(periods[0])
    for trial in range(30):
        period = int(rng.integers(*periods, endpoint=True))
        loop = np.tile(rng.integers(0, VOCAB, period), 1500 // period)
        found.append(loops(np.concatenate([text(int(rng.integers(100, 1500)), trial), loop])))
    assert np.mean(found) >= (0.95 if periods[1] <= 64 else 0.6)


def test_a_finer_chunk_finds_them_all():
    rng = np.random.default_rng(0)
    for period in rng.integers(1, 190, 40):
        loop = np.tile(rng.integers(0, VOCAB, period), 1500 // period)
        assert loops(np.concatenate([text(500, period), loop]), Compressibility(chunk=64))


def test_text_is_spared():
    found = [ratio for seed in range(20) for ratio in ratios(text(4000, seed))]
    assert min(found) > 0.3


def test_a_loop_longer_than_the_window_is_not_seen():  # it is no promise, but a known limit
    assert not loops(np.tile(np.random.default_rng(0).integers(0, VOCAB, 400), 10))


def test_python_source_is_spared():
    """Ids of real, repetitive text: bytes of a module of the standard library as ids."""
    import argparse
    import inspect

    source = inspect.getsource(argparse).encode()
    assert min(ratios(list(source))) > 0.05


@given(st.lists(st.integers(0, 3), max_size=700), st.lists(st.integers(1, 90), min_size=1))
def test_tokens_may_come_in_any_pieces(ids, pieces):
    canary, begin = Canary(), 0
    for piece in pieces:
        canary.push(ids[begin : begin + piece])
        begin += piece
    canary.push(ids[begin:])
    assert canary.close() == loops(ids) and canary.ratios == ratios(ids)


@pytest.mark.parametrize(("tokens", "chunks"), [(0, 0), (5, 1), (128, 1), (255, 1), (256, 2)])
def test_a_short_rest_belongs_to_the_chunk_before_it(tokens, chunks):
    assert len(ratios(list(range(tokens)))) == chunks


def test_a_generation_can_be_ended_when_it_begins_to_loop():
    canary = Canary()
    assert not canary.push(text(1000))
    assert canary.push([7] * 600)


def test_settings_are_checked():
    with pytest.raises(UserError, match="chunk = 0"):
        Compressibility(chunk=0)


def test_rare_tokens_are_those_at_the_end_of_the_vocabulary():
    found = rare_fractions([0, 89, 90, 95, 99], 100)
    assert found == {0.10: 3 / 5, 0.05: 2 / 5, 0.02: 1 / 5, 0.01: 1 / 5}
    assert set(rare_fractions([], 100).values()) == {0.0}


def test_gibberish_is_rare_and_unexpected():
    assert logprob_threshold(VOCAB) == pytest.approx(-14.477, abs=1e-3)
    ids, logprobs = [5, 200_000, 200_000, 100_000], [-20.0, -20, -14, -20]
    assert gibberish(ids, logprobs, VOCAB).tolist() == [False, True, False, False]
    assert not gibberish([], [], VOCAB).size
    assert math.isclose(logprob_threshold(100), -math.log(100) - 2)
