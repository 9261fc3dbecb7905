"""The curriculum holds a policy near its boundary, asks evenly, and forgets nothing."""

from __future__ import annotations

import json
from collections import Counter, deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from zaya_jax.errors import UserError
from zaya_jax.rl.curriculum import plot, schedule
from zaya_jax.rl.curriculum.difficulty import RULES, Record, scored
from zaya_jax.rl.curriculum.schedule import Curriculum, Draw

GROUP = 16


def trained(curriculum, ability, groups, seed=0, in_flight=1):
    """Runs a policy whose ability, by environment and group, is given; its rates of success."""
    policy, waiting, rates = np.random.default_rng(seed), deque(), []
    for number in range(groups):
        asked, curriculum = schedule.draw(curriculum)
        chance = expit(ability(asked.environment, number) - asked.difficulty)
        waiting.append((asked, policy.binomial(GROUP, chance) / GROUP))
        rates.append(chance)
        if len(waiting) >= in_flight:
            curriculum = schedule.score(curriculum, *waiting.popleft(), GROUP)
    return curriculum, rates


@pytest.mark.parametrize("begin", [0, 8, 25])
def test_holds_a_policy_near_its_boundary(begin):
    curriculum = schedule.start({"a": begin})
    curriculum, rates = trained(curriculum, lambda name, number: 8.0, 400)
    assert abs(curriculum.records["a"].difficulty - 8) <= 3
    assert 0.2 < np.mean(rates[100:]) < 0.75


def test_follows_a_policy_that_learns_and_one_that_forgets():
    curriculum = schedule.start(["a"])
    rising, _ = trained(curriculum, lambda name, number: 5 + number / 20, 400)
    assert abs(rising.records["a"].difficulty - 25) <= 3
    falling, _ = trained(rising, lambda name, number: 5.0, 100)
    assert falling.records["a"].difficulty <= 10
    assert falling.records["a"].lowered >= 12


def test_holds_it_with_many_groups_under_way():
    curriculum = schedule.start({"a": 0})
    curriculum, rates = trained(curriculum, lambda name, number: 8.0, 800, in_flight=32)
    assert abs(curriculum.records["a"].difficulty - 8) <= 3
    assert curriculum.records["a"].stale > 0


def test_each_environment_has_a_difficulty_of_its_own():
    abilities = {"easy": 12.0, "hard": 3.0, "none": -50.0}
    curriculum, _ = trained(
        schedule.start(list(abilities)), lambda name, number: abilities[name], 900
    )
    records = curriculum.records
    assert abs(records["easy"].difficulty - 12) <= 3 and abs(records["hard"].difficulty - 3) <= 3
    assert records["none"].difficulty == 0


def test_equation_11():
    record = Record(difficulty=5)
    rule = RULES["report"]
    assert scored(record, rule, 5, 0.71, GROUP).difficulty == 6
    assert scored(record, rule, 5, 0.70, GROUP).difficulty == 5
    assert scored(record, rule, 5, 0.01, GROUP).difficulty == 5
    assert scored(record, rule, 5, 0.0, GROUP).difficulty == 4
    assert scored(Record(difficulty=0), rule, 0, 0.0, GROUP).difficulty == 0


@given(st.integers(0, 20), st.integers(0, 20), st.floats(0, 1))
def test_stale_groups_do_not_move_difficulty(current, asked, mean):
    record = Record(difficulty=current, raised=3)
    for name in ("report", "rlve", "fixed"):
        after = scored(record, RULES[name], asked, mean, GROUP)
        assert asked == current or after.difficulty == current
        assert after.scored == 1 and after.stale == (asked != current)
        assert abs(after.difficulty - current) <= 1 and after.difficulty >= 0
    printed = scored(record, RULES["printed"], asked, mean, GROUP)
    assert printed.difficulty == max(0, current - 1) or mean > 0


def test_a_burst_of_old_failures_lowers_once_and_to_the_letter_of_the_equation_each_time():
    def after(rule: str) -> int:
        curriculum = schedule.start({"a": 9}, rule=rule)
        waiting = []
        for _ in range(6):
            asked, curriculum = schedule.draw(curriculum)
            waiting.append(asked)
        for asked in waiting:
            curriculum = schedule.score(curriculum, asked, 0.0, GROUP)
        return curriculum.records["a"].difficulty

    assert (after("report"), after("printed")) == (8, 3)


def test_rlves_own_rule_needs_enough_rollouts_and_never_goes_down():
    rule, record = RULES["rlve"], Record(difficulty=5)
    for _ in range(7):
        record = scored(record, rule, 5, 1.0, GROUP)
        assert record.difficulty == 5
    record = scored(record, rule, 5, 1.0, GROUP)
    assert (record.difficulty, record.tried) == (6, 0)
    for _ in range(50):
        record = scored(record, rule, 6, 0.0, GROUP)
    assert record.difficulty == 6
    curriculum = schedule.start({"a": 9}, rule="rlve")
    seen = set()
    for _ in range(100):
        asked, curriculum = schedule.draw(curriculum)
        seen.add(asked.difficulty)
    assert seen == {6, 7, 8, 9}


def test_environments_that_were_sampled_least_come_first():
    curriculum = schedule.start([f"e{i}" for i in range(20)])
    counts: Counter[str] = Counter()
    for _ in range(400):
        asked, curriculum = schedule.draw(curriculum)
        counts[asked.environment] += 1
    assert len(counts) == 20 and max(counts.values()) - min(counts.values()) < 20
    chances = schedule.shares(curriculum)
    assert sum(chances.values()) == pytest.approx(1)
    least, most = min(counts, key=counts.get), max(counts, key=counts.get)
    assert chances[least] / chances[most] == pytest.approx((1 + counts[most]) / (1 + counts[least]))


@given(st.integers(0, 60), st.integers(0, 10), st.sampled_from(sorted(RULES)))
def test_a_run_that_goes_on_from_its_state_asks_the_same(before, seed, rule):
    names = ["a", "b", "c"]
    curriculum, _ = trained(schedule.start(names, rule=rule, seed=seed), lambda n, i: 3.0, before)
    again = Curriculum.from_state(json.loads(json.dumps(curriculum.state())))
    assert again == curriculum
    one, two = (trained(c, lambda n, i: 3.0, 20) for c in (curriculum, again))
    assert one == two


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schedule.start([]), "at least one environment"),
        (lambda: schedule.start(["a", "a"]), "'a' is in the curriculum twice"),
        (lambda: schedule.start({"a": -1}), "begins at difficulty -1"),
        (lambda: schedule.start({"a": True}), "begins at difficulty True"),
        (lambda: schedule.start(["a"], rule="reprot"), "did you mean report"),
        (lambda: schedule.score(schedule.start(["a"]), Draw("b", 0, 0), 1.0, 4), "no environment"),
        (lambda: schedule.score(schedule.start(["a"]), Draw("a", 0, 0), 1.5, 4), "from 0 to 1"),
        (lambda: schedule.score(schedule.start(["a"]), Draw("a", 0, 0), float("nan"), 4), "nan"),
        (lambda: Curriculum.from_state({"records": {}}), "no state of a curriculum"),
        (lambda: Curriculum.from_state({"records": {"a": {"level": 1}}}), "no state"),
    ],
)
def test_mistakes_are_told(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_difficulties_are_drawn_and_logged():
    abilities = {"a": 6.0, "b": 2.0}
    curriculum, _ = trained(
        schedule.start(list(abilities)), lambda name, number: abilities[name], 120
    )
    figure = plot.difficulties(curriculum)
    left, right = figure.axes
    for line, name in zip(left.lines, abilities, strict=True):
        assert line.get_label() == name
        assert line.get_ydata()[-1] == curriculum.records[name].difficulty
        assert line.get_xdata()[-1] == 120
    assert sum(bar.get_height() for bar in right.patches) == 120
    logged = schedule.metrics(curriculum)
    records = curriculum.records.values()
    assert logged["difficulty_max"] == max(record.difficulty for record in records)
    assert logged["environments_sampled"] == 2 and logged["stale_share"] == 0
