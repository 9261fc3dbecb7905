"""The length reward, case by case as one works it out by hand."""

import numpy as np
import pytest

from zaya_jax.errors import UserError
from zaya_jax.rl.advantages import maxrl
from zaya_jax.rl.length_reward import OTHERS, LengthReward, length_reward, pooled, track_best

PLAIN = LengthReward(coefficient=1.0, longest=81_920, length_tolerance=0)


def shaped(rewards, lengths, best=0.0, settings=PLAIN):
    return length_reward([rewards], [lengths], np.array([best]), settings)[0].tolist()


def test_the_worked_example():
    found = shaped([1, 1, 0, 0], [1000, 41_460, 10, 90_000])
    assert found == [0.25, 0, 0, 0]  # p = 1/2; lam = 1/2 and 0
    advantages = maxrl([[1.0, 1, 0, 0]], [found], centre="task")
    assert advantages.tolist() == [[1.5, 1, -1, -1]]


def test_easier_prompts_are_rewarded_more():
    lengths = [100, 200, 300, 400]
    assert shaped([1, 1, 0, 0], lengths)[0] == 0.25
    assert shaped([1, 1, 1, 0], lengths)[0] == 0.375
    assert shaped([1, 1, 1, 1], lengths)[0] == 0.5


def test_the_longest_right_answer_loses_as_much_as_the_shortest_gains():
    assert shaped([1, 1], [0, 81_920]) == [0.5, -0.5]
    assert shaped([1, 1], [0, 200_000]) == [0.5, -0.5]  # clamped: longer than the budget


def test_a_little_longer_is_as_good():
    tolerant = LengthReward(longest=1000, length_tolerance=100)
    found = shaped([1, 1, 1], [100, 200, 201], settings=tolerant)
    assert found[:2] == [0.5, 0.5] and found[2] == pytest.approx(0.5 - 101 / 900)


def test_one_right_answer_is_no_contest():
    assert shaped([1, 0, 0, 0], [10, 20, 30, 40]) == [0, 0, 0, 0]


def test_prompts_far_below_the_best_of_their_source_are_left_alone():
    rewards, lengths = [1, 1, 0, 0], [10, 500, 20, 30]
    assert shaped(rewards, lengths, best=0.6)[0] == 0  # 0.5 > 0.6 - 0.05 does not hold
    assert shaped(rewards, lengths, best=0.54)[0] == 0.25


def test_equal_lengths_at_the_budget_and_no_right_answer():
    settings = LengthReward(longest=10, length_tolerance=0)
    assert shaped([1, 1], [10, 10], settings=settings) == [0.5, 0.5]
    assert shaped([1, 1], [10, 12], settings=settings) == [0.5, -0.5]
    assert shaped([0, 0], [10, 12], settings=settings) == [0, 0]


def test_the_coefficient_scales_and_lost_rollouts_do_not_count():
    half = LengthReward(coefficient=0.5, longest=1000, length_tolerance=0)
    found = length_reward([[1, 1, np.nan, 0]], [[0, 1000, 5, 5]], np.array([0.0]), half)
    np.testing.assert_allclose(found, [[0.5 * 2 / 3 / 2, -0.5 * 2 / 3 / 2, 0, 0]])


def test_the_best_solve_rate_of_a_source_only_rises():
    best = track_best({}, ["a"] * 4 + ["b"] * 4, np.repeat([0.25, 0.75, 0.1], [2, 2, 4]))
    assert best == pytest.approx({"a": 0.5, "b": 0.1})
    later = track_best(best, ["a"] * 4 + ["b"] * 4, np.repeat([0.2, 0.4], 4))
    assert later == pytest.approx({"a": 0.5, "b": 0.4}) and best["b"] == pytest.approx(0.1)


def test_sources_of_few_prompts_count_as_one():
    """Of hundreds of environments a batch has a group each: their maximum would soon be 1."""
    sources = ["a"] * 4 + [f"rlve/{i}" for i in range(6)]
    best = track_best({}, sources, np.array([0.5] * 4 + [1.0, 0.0, 0.25, 0.25, 0.5, 1.0]))
    assert best == {"a": 0.5, OTHERS: 0.5}
    assert pooled(sources) == ["a"] * 4 + [OTHERS] * 6


@pytest.mark.parametrize("field", ["coefficient", "longest", "length_tolerance"])
def test_numbers_out_of_range_are_refused(field):
    with pytest.raises(UserError, match=field):
        LengthReward(**{field: -1})
