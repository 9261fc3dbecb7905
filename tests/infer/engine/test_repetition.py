"""Circles are found when they have gone round often enough, and nothing else is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.errors import UserError
from zaya_jax.infer.engine import Repetition
from zaya_jax.infer.engine.repetition import Watch


def found(tokens, rule, logprob=-1.0) -> int | None:
    """Tokens after which the guard spoke."""
    watch = Watch(rule)
    return next((n for n, token in enumerate(tokens, 1) if watch.push(token, logprob)), None)


def defined(tokens, rule) -> int | None:
    """The definition, written out."""
    for n in range(1, len(tokens) + 1):
        for period in range(1, rule.longest + 1):
            span = max(period * rule.rounds, rule.least)
            end = tokens[n - span : n] if span <= n else None
            if end and all(end[i] == end[i - period] for i in range(period, span)):
                return n
    return None


@given(
    head=st.lists(st.integers(0, 2), max_size=12),
    circle=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    rounds=st.integers(2, 4),
    least=st.integers(1, 12),
)
def test_speaks_where_the_definition_does(head, circle, rounds, least):
    rule = Repetition(longest=5, rounds=rounds, least=least)
    tokens = head + circle * 6
    assert found(tokens, rule) == defined(tokens, rule)


def test_tokens_that_are_certain_are_counted_where_asked():
    assert found(range(50), Repetition(certain=7), logprob=-0.001) == 7
    assert found(range(50), Repetition(certain=7), logprob=-0.02) is None
    assert found(range(50), Repetition(), logprob=0.0) is None


@pytest.mark.parametrize("field", ["longest", "rounds", "least"])
def test_values_beyond_any_sense_are_named(field):
    with pytest.raises(UserError, match=f"repetition: {field} = 1000"):
        Repetition(**{field: 10**30})


@pytest.mark.parametrize("field", ["longest", "rounds", "least", "certain"])
def test_values_out_of_range_are_named(field):
    with pytest.raises(UserError, match=f"repetition: {field} = -1"):
        Repetition(**{field: -1})
