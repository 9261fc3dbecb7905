"""The log-ratio penalty: its arithmetic, and the bias to length that it was dropped for."""

import jax
import numpy as np

from zaya_jax.rl import log_ratio_penalty as module
from zaya_jax.rl.log_ratio_penalty import chunks

log_ratio_penalty = jax.jit(module.log_ratio_penalty, static_argnames=("local", "by_staleness"))

ROLLOUTS = np.array([0, 0, 0, 0, 1, 1, 1])
VERSIONS = np.array([4, 4, 5, 6, 3, 3, 6])
RATIOS = np.array([1.0, 2, 3, 4, 5, 6, 7], np.float32)
WEIGHTS = np.array([1, 1, 1, 1, 1, 0, 1], np.float32)


def penalty(**options):
    found = log_ratio_penalty(RATIOS, ROLLOUTS, VERSIONS, WEIGHTS, 6, **options)
    return np.asarray(found).tolist()


def test_chunks_are_runs_of_one_rollout_and_one_version():
    assert np.asarray(chunks(ROLLOUTS, VERSIONS)).tolist() == [0, 0, 1, 2, 3, 3, 4]
    assert np.asarray(chunks(ROLLOUTS, 0 * VERSIONS)).tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_a_token_is_charged_with_its_rollout_or_with_its_chunk():
    assert penalty() == [10, 10, 10, 10, 12, 12, 12]
    assert penalty(local=True) == [3, 3, 3, 4, 5, 5, 7]


def test_staleness_divides_each_chunk_and_fresh_ones_by_one():
    found = penalty(local=True, by_staleness=True)
    np.testing.assert_allclose(found, [1.5, 1.5, 3, 4, 5 / 3, 5 / 3, 7], rtol=1e-6)
    found = penalty(by_staleness=True)
    np.testing.assert_allclose(found, [8.5] * 4 + [5 / 3 + 7] * 3, rtol=1e-6)


def test_the_penalty_rewards_length():
    """A stale policy, rollouts of all lengths, answers that do not matter: the expected penalty is
    minus the KL per token times the length, so subtracting it pays for every token written."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=20)
    new = logits + 0.5 * rng.normal(size=20)
    generated = np.exp(logits) / np.exp(logits).sum()
    trained = np.exp(new) / np.exp(new).sum()
    kl = np.sum(generated * np.log(generated / trained))

    lengths = rng.integers(1, 200, 400)
    rollouts = np.repeat(np.arange(len(lengths)), lengths)
    tokens = rng.choice(20, lengths.sum(), p=generated)
    within = np.concatenate([np.arange(n) for n in lengths])
    versions = within // 50  # weights were swapped every 50 tokens
    ratios = np.log(trained / generated)[tokens].astype(np.float32)
    first = np.flatnonzero(within == 0)

    def slope(**options):
        found = log_ratio_penalty(
            ratios, rollouts, versions, np.ones(len(tokens), np.float32), 4, **options
        )
        return np.polyfit(lengths, -np.asarray(found)[first], 1)[0]

    assert abs(slope() / kl - 1) < 0.1
    # Of its own chunk alone, a token is charged with at most 50, however long the rollout goes on.
    assert abs(slope(local=True)) < 0.3 * kl
    # The first chunk is 4 updates old, so that its share is a quarter.
    assert slope(by_staleness=True) < 0.8 * slope()
