"""Demonstrations of going on with attempts: right answers, from the best of what is shown."""

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from experiments.rl import long_sums as experiment
from zaya_jax.rl import long_sums

TERMS = st.lists(st.tuples(st.sampled_from("+-"), st.integers(0, 9)), min_size=1, max_size=9)
SUMS = st.tuples(st.integers(0, 9), TERMS).map(
    lambda sum: " ".join([str(sum[0]), *(f"{sign} {number}" for sign, number in sum[1])])
)


def test_the_experiment_asks_what_is_demonstrated():
    settings = experiment.get_config("score")
    assert experiment.TASKS == long_sums.TASKS and settings.rl.heldout <= long_sums.HELDOUT


@given(SUMS, st.integers(0, 2**32))
def test_answers_go_on_from_a_right_line_if_there_is_one(expression, seed):
    tails = long_sums.attempts(expression, np.random.default_rng(seed))
    work = long_sums.go_on(expression, tails)
    lines = work.split(" = ")
    assert {eval(line) for line in lines} == {eval(expression)}  # noqa: S307  # of our own
    shown = [line for tail in tails for line in long_sums.lines_of(tail)]
    assert lines[0] in [*shown, expression]
    right = [line for line in shown if eval(line) == eval(expression)]  # noqa: S307
    assert all(len(lines[0].split()) <= len(line.split()) for line in right)


def test_attempts_have_mistakes_now_and_then():
    generator = np.random.default_rng(0)
    expression = "1 + 2 + 3 - 4 + 5 + 6 - 7 + 8"
    ends = [long_sums.mistaken(expression, generator).split(" = ")[-1] for _ in range(400)]
    right = sum(end == str(eval(expression)) for end in ends) / 400  # noqa: S307
    assert abs(right - (1 - long_sums.MISTAKE) ** 7) < 0.1


def test_half_of_the_chats_aggregate(monkeypatch):
    chats = list(itertools.islice(long_sums.demonstrations(), 400))
    aggregated = [c for c in chats if "Attempts:" in c.messages[0]["content"]]
    assert 0.4 < len(aggregated) / len(chats) < 0.6
    for chat in aggregated:
        assert chat.messages[0]["content"].rstrip().endswith("Go on from the best.")
