import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.data.example import Example, Think
from zaya_jax.data.trim import DROPPED, KEPT, STRIPPED, TRIMMED, smallest_budget, trim

OPEN, CLOSE, USER, END = 1, 2, 3, 4


def conversation(*turns):
    """Each turn is a list: a number of answer tokens, or (n,) for a think block of n tokens.

    Thinking counts up from 1000 and answers from a million, so that every token can be told apart.
    """
    ids, learn, thinks = [], [], []
    answer, thought = itertools.count(10**6), itertools.count(1000)
    for number, turn in enumerate(turns):
        ids.append(USER)
        learn.append(False)
        for part in turn:
            if isinstance(part, tuple):
                start = len(ids) + 1
                ids += [OPEN, *(next(thought) for _ in range(part[0])), CLOSE]
                thinks.append(Think(start, len(ids) - 1, number))
            else:
                ids += [next(answer) for _ in range(part)]
        ids.append(END)
        learn += [True] * (len(ids) - len(learn))
    return Example(np.array(ids, np.int32), np.array(learn), tuple(thinks), len(turns))


parts = st.one_of(st.integers(0, 4), st.tuples(st.integers(0, 6)))
conversations = st.lists(st.lists(parts, max_size=4), min_size=1, max_size=4).map(
    lambda turns: conversation(*turns)
)


def thinking(example, turn):
    """Tokens inside a turn's think blocks."""
    blocks = [example.ids[t.start : t.stop] for t in example.thinks if t.turn == turn]
    return np.concatenate([np.empty(0, int), *blocks]).tolist()


def answers(example):
    """Everything but thinking and think tags."""
    return [i for i in example.ids.tolist() if i >= 10**6 or i in (USER, END)]


@given(conversations, st.integers(1, 60))
def test_what_trimming_keeps(example, budget):
    result, action = trim(example, budget)
    assert (action == KEPT) == (len(example) <= budget)
    assert (result is None) == (action == DROPPED) == (smallest_budget(example) > budget)
    if result is None:
        return
    assert len(result) <= budget
    if action != KEPT and thinking(result, result.turns - 1) != thinking(
        example, example.turns - 1
    ):
        assert len(result) == budget  # not one token more is cut than need be
    assert answers(result) == answers(example)
    assert result.learn.sum() == result.ids.size - example.turns  # user tokens stay unlearnt
    for turn in range(example.turns):
        kept, full = thinking(result, turn), thinking(example, turn)
        assert kept == full[: len(kept)]
        if turn < example.turns - 1:
            assert kept == ([] if action == STRIPPED else full)
    for think in result.thinks:
        assert (result.ids[think.start - 1], result.ids[think.stop]) == (OPEN, CLOSE)
    assert (result.ids == OPEN).sum() == (result.ids == CLOSE).sum() == len(result.thinks)
    again = trim(result, budget)
    assert again.action == KEPT and again.example is result


@given(conversations, st.integers(1, 60), st.integers(1, 60))
def test_a_larger_budget_never_keeps_less(example, small, large):
    small, large = sorted((small, large))
    less, more = trim(example, small), trim(example, large)
    severity = [KEPT, TRIMMED, STRIPPED, DROPPED].index
    assert severity(less.action) >= severity(more.action)
    if less.example is None or more.example is None:
        return
    last = example.turns - 1
    for turn in range(last):
        assert len(thinking(less.example, turn)) <= len(thinking(more.example, turn))
    if not (less.action == STRIPPED and more.action in (KEPT, TRIMMED)):
        assert set(less.example.ids.tolist()) <= set(more.example.ids.tolist())
        kept = thinking(less.example, last)
        assert kept == thinking(more.example, last)[: len(kept)]
        assert trim(more.example, small).example.ids.tolist() == less.example.ids.tolist()


@pytest.mark.parametrize(
    ("turns", "budget", "action", "thoughts"),
    [
        ([[(5,), 3]], 12, KEPT, [5]),
        ([[(5,), 3]], 11, TRIMMED, [4]),
        ([[(5,), 3]], 7, TRIMMED, [0]),  # a think block may lose all it holds, not its tags
        ([[(5,), 3]], 6, DROPPED, None),
        ([[8]], 9, DROPPED, None),  # nothing is ever cut that is not thinking
        ([[(0,), 8]], 11, DROPPED, None),
        ([[(2,), 8, (4,)]], 19, TRIMMED, [5]),  # the end of the last block goes first
        ([[(2,), 8, (4,)]], 15, TRIMMED, [1]),
        ([[(5,), 1], [(5,), 1]], 17, TRIMMED, [5, 2]),
        ([[(5,), 1], [(5,), 1]], 12, STRIPPED, [0, 4]),
        ([[(5,), 1], [1]], 12, STRIPPED, [0, 0]),  # no thinking in the last turn: step 3
        ([[(5,), 1], [(0,), 1]], 12, STRIPPED, [0, 0]),
        ([[(5,), 1], [(5,), 1]], 7, DROPPED, None),
    ],
)
def test_the_four_steps(turns, budget, action, thoughts):
    example = conversation(*turns)
    result, taken = trim(example, budget)
    assert taken == action
    if thoughts is not None:
        assert [len(thinking(result, turn)) for turn in range(len(turns))] == thoughts


def test_a_step_later_can_keep_more_of_the_last_thinking():
    """Why every context length is trimmed from the original."""
    example = conversation([(20,), 1], [(20,), 1])
    trimmed, stripped = trim(example, 30).example, trim(example, 29).example
    assert (len(thinking(trimmed, 1)), len(thinking(stripped, 1))) == (0, 20)
    assert len(thinking(trim(trimmed, 29).example, 1)) == 0


def test_an_example_larger_than_any_budget_is_dropped():
    example = conversation([(10,), 200000], [(10,), 5])
    assert all(trim(example, budget).action == DROPPED for budget in (4096, 32768, 131072))


def test_budget_below_one_is_refused():
    with pytest.raises(ValueError, match="budget is 0 tokens"):
        trim(conversation([1]), 0)
