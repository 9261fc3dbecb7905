"""Advantages: by hand, and MaxRL's promise by enumerating every outcome of a group."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.errors import UserError
from zaya_jax.rl.advantages import grpo, maxrl

binary_groups = st.integers(2, 8).flatmap(
    lambda size: st.lists(
        st.lists(st.sampled_from([0.0, 1.0]), min_size=size, max_size=size), min_size=1, max_size=4
    )
)


@given(binary_groups)
def test_maxrl_pays_a_right_answer_by_how_rare_it_is(rewards):
    rewards = np.array(rewards)
    size = rewards.shape[1]
    for row, advantages in zip(rewards, maxrl(rewards), strict=True):
        right = int(row.sum())
        expected = {1.0: (size - right) / max(right, 1), 0.0: -1.0 if right else 0.0}
        np.testing.assert_allclose(advantages, [expected[r] for r in row], atol=1e-12)
        assert abs(advantages.sum()) < 1e-9


def expectation(probability: float, size: int, truncation: str) -> float:
    """E[mean_i A_i d/dp log pi(y_i)] of a coin with P(right) = p, over all 2^G groups."""
    total = 0.0
    for outcome in itertools.product([0.0, 1.0], repeat=size):
        chance = math.prod(probability if r else 1 - probability for r in outcome)
        scores = np.array([1 / probability if r else -1 / (1 - probability) for r in outcome])
        total += chance * float(np.mean(maxrl([outcome], truncation=truncation)[0] * scores))
    return total


@pytest.mark.parametrize("size", [2, 3, 4, 6])
@pytest.mark.parametrize("probability", [0.05, 0.4, 0.9])
def test_maxrl_is_the_gradient_of_truncated_maximum_likelihood(size, probability):
    def gradient(terms):  # of -sum_{j=1..T} (1-p)^j / j
        return sum((1 - probability) ** (j - 1) for j in range(1, terms + 1))

    assert expectation(probability, size, "G-1") == pytest.approx(gradient(size - 1), rel=1e-9)
    assert expectation(probability, size, "G") == pytest.approx(gradient(size), rel=1e-9)
    assert gradient(size) != pytest.approx(gradient(size - 1), rel=1e-9)


def test_maxrl_weighs_hard_prompts_more_than_grpo_does():
    rewards = np.zeros((1, 16))
    rewards[0, 0] = 1
    assert maxrl(rewards)[0, 0] == 15
    assert 3.7 < grpo(rewards)[0, 0] < 3.9


def test_groups_that_are_all_right_or_all_wrong_teach_nothing():
    same = np.array([[1.0, 1, 1], [0, 0, 0]])
    assert not maxrl(same).any() and not grpo(same).any()
    assert maxrl(same, truncation="G").tolist() == [[0, 0, 0], [-1, -1, -1]]


def test_a_length_reward_is_in_the_numerator_only():
    rewards, shaping = np.array([[1.0, 1, 0, 0]]), np.array([[0.25, 0, 0, 0]])
    assert maxrl(rewards, shaping, centre="task").tolist() == [[1.5, 1, -1, -1]]
    centred = maxrl(rewards, shaping)
    np.testing.assert_allclose(centred, [[1.375, 0.875, -1.125, -1.125]])
    assert centred.sum() == pytest.approx(0)


def test_lost_rollouts_make_their_group_smaller():
    rewards = np.array([[1.0, 0, np.nan, 0], [1, np.nan, np.nan, np.nan]])
    for advantages in (maxrl, grpo):
        found = advantages(rewards)
        np.testing.assert_allclose(found[0, [0, 1, 3]], advantages([[1.0, 0, 0]])[0])
        assert found[0, 2] == 0
        assert not found[1].any()  # one rollout is left: nothing to compare it with
    assert not maxrl(rewards, truncation="G")[1].any()


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=6))
def test_grpo_does_not_mind_the_scale_of_a_reward_model(rewards):
    row = np.array([rewards])
    if np.std(row) < 0.1:
        return
    np.testing.assert_allclose(grpo(row), grpo(10 * row + 3), atol=1e-3)
    assert grpo(row).std(ddof=1) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: maxrl(np.ones((3, 1))), "group size is 1"),
        (lambda: grpo(np.ones((3, 1))), "group size is 1"),
        (lambda: maxrl(np.ones(3)), "prompts, group size"),
        (lambda: maxrl([[1.5, 0]]), "0, 1"),
        (lambda: maxrl([[-1.0, 1]]), "-1 to 1"),
        (lambda: maxrl([[1.0, 0]], truncation="T"), "truncation = 'T'"),
        (lambda: maxrl([[1.0, 0]], centre="tasks"), "did you mean task?"),
    ],
)
def test_mistakes_are_told(call, words):
    with pytest.raises(UserError, match=words):
        call()
