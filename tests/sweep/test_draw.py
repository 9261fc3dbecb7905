"""What is drawn is a function of the sweep, the number, and what came of earlier batches."""

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState

from tests.sweep.fakes import GAINS, make
from zaya_jax.sweep import draw

SPACE = {
    "balance": {**GAINS["balance"], "kind": ("pid", "sign")},
    "model": {
        "num_layers": {"low": 1, "high": 8},
        "attention": {"conv_kernels": ((2, 2), (2,), ())},
    },
}


def trials_of(sweep, outcomes):
    """Draws as many trials as there are outcomes, each told its outcome at once."""
    found = []
    for number, value in enumerate(outcomes):
        drawn = draw.draw(sweep, number, found)
        trial = optuna.trial.create_trial(
            state=TrialState.FAIL if value is None else TrialState.COMPLETE,
            value=value,
            params=drawn.params,
            distributions=draw.distributions(sweep),
        )
        trial.number = number
        found.append(trial)
    return found


def params(trials):
    return [trial.params for trial in trials]


OUTCOMES = st.lists(
    st.one_of(st.none(), st.floats(-10, 10), st.just(float("inf"))), min_size=13, max_size=16
)


@given(OUTCOMES, st.integers(0, 3), st.integers(1, 5))
def test_the_same_outcomes_give_the_same_trials(outcomes, seed, at_once):
    sweep = make(search="tpe", space=SPACE, trials=20, search_seed=seed, at_once=at_once)
    assert params(trials_of(sweep, outcomes)) == params(trials_of(sweep, outcomes))


@given(OUTCOMES, st.integers(1, 5), st.data())
def test_a_trial_knows_nothing_of_the_outcomes_of_its_own_batch(outcomes, at_once, data):
    sweep = make(search="tpe", space=SPACE, trials=20, at_once=at_once)
    number = data.draw(st.integers(0, len(outcomes) - 1))
    start = draw.batch_of(sweep, number).start
    other = [*outcomes[:start], *(-100.0 for _ in outcomes[start:])]
    one, two = trials_of(sweep, outcomes), trials_of(sweep, other)
    assert params(one[: number + 1]) == params(two[: number + 1])


def test_mates_of_a_batch_keep_off_each_other():
    """Where a mate is being tried has a say in what is drawn after it, though not its outcome."""
    sweep = make(search="tpe", space=GAINS, trials=20, at_once=4)
    found = trials_of(sweep, [float(i) for i in range(13)])
    away = optuna.trial.create_trial(
        value=12.0, params=dict(found[2].params), distributions=draw.distributions(sweep)
    )
    away.number = 12
    assert draw.draw(sweep, 13, found) != draw.draw(sweep, 13, [*found[:12], away])


def test_tpe_learns_from_outcomes_and_random_does_not():
    """Between two courses of the same search, one of which is told that large gains are good."""

    def drawn(search, good):
        sweep = make(search=search, space=GAINS, trials=30, at_once=1)
        found = []
        for number in range(30):
            one = draw.draw(sweep, number, found)
            value = abs(one.params["balance.kp"] - good)
            trial = optuna.trial.create_trial(
                value=value, params=one.params, distributions=draw.distributions(sweep)
            )
            trial.number = number
            found.append(trial)
        return [trial.params["balance.kp"] for trial in found[15:]]

    low, high = drawn("tpe", 1e-3), drawn("tpe", 1.0)
    assert sorted(low)[7] < 0.1 * sorted(high)[7]
    assert drawn("random", 1e-3) == drawn("random", 1.0)


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_fields_have_the_types_of_the_experiment(search):
    sweep = make(search=search, space=SPACE, trials=12)
    for number in range(12):
        fields = draw.draw(sweep, number, []).fields
        assert 1e-3 <= fields["balance.kp"] <= 1.0
        assert fields["balance.kind"] in ("pid", "sign")
        assert isinstance(fields["model.num_layers"], int) and 1 <= fields["model.num_layers"] <= 8
        assert fields["model.attention.conv_kernels"] in ((2, 2), (2,), ())


def test_another_search_seed_gives_other_trials():
    one, two = (make(search="random", space=GAINS, search_seed=seed) for seed in (0, 1))
    assert draw.draw(one, 0, []) != draw.draw(two, 0, [])
    assert draw.draw(one, 0, []) != draw.draw(one, 1, [])


def test_a_grid_has_every_point_once_in_the_order_it_is_written():
    space = {
        "balance": {"kp": (0.2, 0.1), "kind": ("pid", "sign")},
        "model": {"attention": {"conv_kernels": ((2, 2), ())}},
    }
    sweep = make(search="grid", space=space, trials=99)
    assert draw.total(sweep) == 8
    points = [draw.draw(sweep, n, []).fields for n in range(8)]
    assert len({tuple(point.values()) for point in points}) == 8
    assert tuple(points[0].values()) == (0.2, "pid", (2, 2))
    assert tuple(points[1].values()) == (0.2, "pid", ())
    assert tuple(points[7].values()) == (0.1, "sign", ())


def test_trials_wait_for_each_other_only_where_outcomes_matter():
    arms = {str(i): {} for i in range(9)}
    assert draw.batch_of(make(arms=arms), 5) == range(9)
    assert draw.batch_of(make(search="random", space=GAINS, trials=9), 5) == range(9)
    search = make(search="tpe", space=GAINS, trials=9, at_once=4)
    assert [draw.batch_of(search, n) for n in (5, 8)] == [range(4, 8), range(8, 9)]


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_a_search_begins_with_the_base_where_the_space_has_it(search):
    sweep = make(search=search, space={"balance": {"ki": {"low": 0.001, "high": 0.1}}})
    assert draw.draw(sweep, 0, []).fields == {"balance.ki": sweep.base.balance.ki}
    (trial,) = trials_of(sweep, [1.0])
    assert draw.draw(sweep, 1, [trial]).fields != {"balance.ki": sweep.base.balance.ki}
    elsewhere = make(search=search, space={"balance": {"ki": {"low": 0.05, "high": 0.1}}})
    assert 0.05 <= draw.draw(elsewhere, 0, []).fields["balance.ki"] <= 0.1
