"""Calibration of a stage: rollouts of a scripted policy, real environments, where they begin."""

import dataclasses
import functools
import random
from types import SimpleNamespace

import numpy as np
import pytest

from tests.rl.test_scoring import Chat, Engine
from zaya_jax.config.rl import RL, Curriculum
from zaya_jax.rl import calibration
from zaya_jax.rl.graded import Graded

SUMS = (
    'reasoning_gym:chain_sum?{"min_terms": "2+d", "max_terms": "2+d", "min_digits": 1, '
    '"max_digits": 1}'
)
SECTION = RL(curriculum=Curriculum(rounds=12), group=8, max_prompt=10_000, max_tokens=64)


class Scorer:
    """Full marks for "right"; a verifier that fails gives NaN."""

    def score(self, verifiers, submissions):
        given = {"right": 1.0, "wrong": 0.0, "lost": np.nan}
        return SimpleNamespace(rewards=np.array([given[s.response] for s in submissions]))


def terms(prompt: str) -> int:
    expression = prompt.rpartition("following: ")[2]
    return expression.count("+") + expression.count("-") + 1


def student(prompt, sampling):
    """Solves half of the sums of six terms, more of the shorter ones: crosses at difficulty 4."""
    chance = 1 / (1 + np.exp((terms(prompt) - 6) / 0.5))
    return "right" if random.Random(sampling.seed).random() < chance else "wrong"


def run(tmp_path, answer=student, section=SECTION, seed=1):
    tmp_path.mkdir(exist_ok=True)
    graded, said = Graded([SUMS], section.curriculum, seed), []
    engine = Engine(answer)
    calibration.begin(
        graded, engine, Chat(), Scorer(), section, seed=seed, folder=tmp_path, say=said.append
    )
    return graded, engine, said, calibration.read(tmp_path)["environments"][SUMS]


def test_a_stage_begins_where_the_policy_solves_half(tmp_path):
    graded, engine, said, told = run(tmp_path)
    record = graded.curriculum.records[SUMS]
    assert record.difficulty == told["start"] == 4
    assert told["low"] < 4 < told["high"]
    assert len(told["seen"]) == len(engine.asked) == 12
    assert all(tries == 8 for _, _, tries in told["seen"])
    assert all(request.sampling.temperature == 1 for request in engine.asked[0])
    assert len({r.sampling.seed for asked in engine.asked for r in asked}) == 12 * 8
    assert "begins at difficulty 4" in said[-1]
    assert terms(graded.ask(0).prompt) == 6
    # A run that was killed before its first checkpoint comes to the same, and asks nothing.
    again, engine, _, _ = run(tmp_path)
    assert again.curriculum.records[SUMS].difficulty == 4 and not engine.asked


def test_one_that_is_stopped_goes_on_after_the_round(tmp_path):
    whole = run(tmp_path / "whole")[-1]
    graded, engine = Graded([SUMS], SECTION.curriculum, 1), Engine(student)
    begin = functools.partial(
        calibration.begin, graded, engine, Chat(), Scorer(), SECTION, seed=1,
        folder=tmp_path, say=lambda text: None,
    )  # fmt: skip
    assert not begin(stop=lambda: len(engine.asked) == 5)
    assert graded.curriculum.records[SUMS].difficulty == 0
    assert begin() and len(engine.asked) == 12
    assert calibration.read(tmp_path)["environments"][SUMS] == whole


def test_what_cannot_be_asked_is_too_hard_and_what_was_lost_says_nothing(tmp_path):
    short = dataclasses.replace(SECTION, max_prompt=1)
    graded, engine, _, told = run(tmp_path, section=short)
    assert not engine.asked and graded.curriculum.records[SUMS].difficulty == 0
    assert all(right == 0 for _, right, _ in told["seen"])
    _, _, _, told = run(tmp_path / "lost", answer=lambda prompt, sampling: "lost")
    assert told["seen"] == []


def test_the_curriculum_keeps_its_rule_and_seed():
    graded = Graded([SUMS], Curriculum(rule="rlve"), 5)
    graded.begin({SUMS: 3})
    assert (graded.curriculum.rule, graded.curriculum.seed) == ("rlve", 5)
    assert graded.curriculum.moves == ((0, SUMS, 3),)
    with pytest.raises(Exception, match="at least 0"):
        graded.begin({SUMS: -1})
