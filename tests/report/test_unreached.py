"""Counts of steps that some runs never came to: bounds, not numbers."""

import pytest

from tests.report.test_compare import section, tables
from zaya_jax.report import compare, words
from zaya_jax.report.arms import Arm, Value, value_of
from zaya_jax.report.bands import intervals
from zaya_jax.report.compare import Claim
from zaya_jax.report.content import Badge
from zaya_jax.report.run import Run

NAME = "steps_to_balance"
LONGER = "a longer run, not more seeds, would tell more"


@pytest.fixture
def arm(monkeypatch, tmp_path):
    """Makes an arm of counts by seed; None was not reached within 400 steps."""
    counts = {}
    monkeypatch.setattr(Arm, "values", lambda self, measure: counts[self.name])

    def make(name, *reached):
        counts[name] = {
            seed: Value(400.0, reached=False) if x is None else Value(float(x))
            for seed, x in enumerate(reached)
        }
        return Arm(name, {}, {0: Run(tmp_path, {}, None, [], [], {})})

    return make


def page(arms, *claims):
    return compare._page("", "", arms, [NAME], [Claim(NAME, *c, "") for c in claims], (), ())


def test_where_no_arm_came_to_it_nothing_is_the_best(arm, undrawn):
    found = page([arm("a", None, None, None), arm("b", None, None, None)], ("a", "b"))
    (line,) = [part.text for part in found.opening if part.kind == "plain"]
    assert line == f"Steps to balance: no arm reached it within 400 steps; {LONGER}."
    (claims,) = tables(found, "Claims")
    assert claims.rows[0][1].word == "not settled"
    assert claims.rows[0][2].startswith(f"no difference as far as the runs went, 3 seeds; {LONGER}")
    (table,) = tables(found, "Differences to the first arm")
    assert table.rows == [["b", "not known"]]


def test_the_best_arm_is_told_with_the_seeds_that_never_came_to_it(arm):
    best, other = arm("a", 380, None, None), arm("b", None, None, None)
    (line,) = words.outcome([best, other], NAME)
    assert line == (
        "a has the best steps to balance: > 393.3; never in 2 of 3 seeds. "
        f"It cannot be told from b (about 6.667 apart; {LONGER})."
    )


def test_differences_are_bounds_and_hold_on_their_side_only(arm, undrawn):
    soon, never, once = arm("soon", 100, 110, 120), arm("never", *[None] * 3), arm("once", 9, 9, 9)
    found = page([soon, never, once], ("soon", "never"), ("never", "soon"))
    (claims,) = tables(found, "Claims")
    assert [row[1].word for row in claims.rows] == ["agrees", "disagrees"]
    assert claims.rows[0][2].startswith("at least 290 steps less, 3 seeds")
    assert claims.rows[1][2].startswith("at least 290 steps more, 3 seeds")
    (table,) = tables(found, "Differences to the first arm")
    assert table.rows[0] == ["never", Badge("> +290", "bad")]
    assert table.rows[1][1].word == "-101 ± 25"
    assert LONGER in section(found, "Differences to the first arm").parts[1].text
    assert found.results["claims"][0]["bound"] == "at least"


def test_an_arm_that_was_cut_off_is_not_called_the_better_one(arm):
    early, late = arm("early", *[None] * 3), arm("late", 900, 910, 920)  # it ran longer
    (line,) = words.outcome([early, late], NAME)
    assert line.endswith(f"It cannot be told from late (at most 510 apart; {LONGER}).")
    assert "better than" not in line


def test_the_plot_has_no_interval_of_a_bound(arm):
    never = arm("never", None, None, 300)
    svg = intervals(
        "x", {"never": (never.interval(NAME), never.numbers(NAME), never.unreached(NAME))}, "steps"
    )
    assert "never: more than 366.7" in svg and "±" not in svg


@pytest.mark.parametrize(
    ("rollbacks", "value"), [(0, Value(200.0, reached=False)), (1, Value(None))]
)
def test_a_run_that_was_rolled_back_has_no_bound_on_its_recovery(tmp_path, rollbacks, value):
    steps = range(4, 401, 4)
    levels = {step: 0.9 if step <= 200 else 0.1 for step in steps}
    records = [
        {"step": s, "loss": 1.0, "load_entropy": [levels[s]], "rollbacks": rollbacks} for s in steps
    ]
    config = {"data": {"mixture_schedule": [[200, [0.0, 1.0]]]}}
    assert value_of("recovery_steps", Run(tmp_path, config, None, records, [], {})) == value
