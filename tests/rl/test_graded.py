"""Graded sources in a stage: the difficulty that is asked follows from how tasks were answered."""

import json

import pytest

from zaya_jax.config.rl import Curriculum
from zaya_jax.errors import UserError
from zaya_jax.rl import graded
from zaya_jax.rl.graded import Graded
from zaya_jax.rl.questions import HELDOUT_LEVELS, Questions

SUMS = (
    'reasoning_gym:chain_sum?{"min_terms": "2+d", "max_terms": "2+d", "min_digits": 1, '
    '"max_digits": 1}'
)
DIGITS = 'reasoning_gym:spell_backward?{"min_word_len": 3, "max_word_len": "3+2*d"}'


def terms(task):
    return len(task.metadata["entry"]["metadata"]["expression"].split()) // 2 + 1


def test_which_names_are_graded():
    assert graded.is_graded(SUMS) and graded.is_graded(DIGITS) and graded.is_graded("rlve:Sorting")
    assert not graded.is_graded("reasoning_gym:chain_sum") and not graded.is_graded("tasks.jsonl")
    with pytest.raises(UserError, match="are no JSON"):
        graded.is_graded("reasoning_gym:chain_sum?{")


def test_a_policy_is_held_where_it_solves_half():
    """A student solves sums of up to five terms: it is asked five and six, and no others."""
    asked = Graded([SUMS], Curriculum(start=0), seed=1)
    lengths = []
    for number in range(60):
        task = asked.ask(number)
        lengths.append(terms(task))
        asked.scored(number, float(lengths[-1] <= 5), 8)
    assert lengths[:5] == [2, 3, 4, 5, 6] and set(lengths[10:]) == {5, 6}


def test_the_state_is_all_there_is():
    one = Graded([SUMS, DIGITS], Curriculum(), seed=3)
    for number in range(10):
        one.ask(number)
        one.scored(number, 1.0, 4)
    other = Graded([SUMS, DIGITS], Curriculum(), seed=3)
    other.restore(json.loads(json.dumps(one.state())))
    assert [one.ask(n) for n in range(10, 20)] == [other.ask(n) for n in range(10, 20)]
    with pytest.raises(UserError, match="of other rl.tasks"):
        Graded([SUMS], Curriculum(), seed=3).restore(one.state())


def test_lost_groups_move_nothing():
    asked = Graded([SUMS], Curriculum(start=2), seed=0)
    asked.ask(0)
    asked.scored(0, 0.0, 0)
    assert asked.curriculum.records[SUMS].difficulty == 2
    assert asked.curriculum.records[SUMS].scored == 0


def test_graded_and_other_sources_are_mixed_and_scored_on_easy_tasks():
    plain = "reasoning_gym:gcd"
    questions = Questions([(SUMS, 3.0), (plain, 1.0)], heldout=8, seed=0)
    assert [task.source for task in questions.heldout].count("gcd") == 4
    held = [terms(task) for task in questions.heldout if task.source == "chain_sum"]
    assert held == [2 + level for level in range(HELDOUT_LEVELS)]
    sources = [task.source for n in range(80) if (task := questions(n)) is not None]
    assert 0.6 < sources.count("chain_sum") / len(sources) < 0.9
    assert Questions([(plain, 1.0)], heldout=0, seed=0).graded is None


def test_all_environments_of_rlve_are_one_name():
    asked = Graded(["rlve:*"], Curriculum(start=1), seed=0)
    assert len(asked.curriculum.records) == 400
    task = next(task for n in range(9) if (task := asked.ask(n)) is not None)
    assert task.source.startswith("rlve/") and task.metadata["difficulty"] == 1
