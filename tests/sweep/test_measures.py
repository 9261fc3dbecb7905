"""What runs are judged by, on lines written by hand."""

import dataclasses

import pytest

from tests.sweep.fakes import BASE, make
from zaya_jax.config import ConfigError
from zaya_jax.sweep import measures
from zaya_jax.sweep.measures import MEASURES, Lines
from zaya_jax.train.metrics import Writer


def training(entropies, **fields):
    """Training lines at steps 1, 11, 21, ...: two layers with this mean, and other fields."""
    return [
        {"step": 1 + 10 * i, "seconds": i, "loss": 1.0}
        | {"load_entropy": [entropy - 0.01, entropy + 0.01]}
        | {name: values[i] for name, values in fields.items()}
        for i, entropy in enumerate(entropies)
    ]


def evaluation(step, bits):
    return {"step": step, "seconds": step, "heldout_bits_per_byte": bits, "heldout_loss": 2 * bits}


def value(name, train=(), evaluations=(), shifts=()):
    return MEASURES[name](Lines(train, evaluations, shifts))


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_says_what_it_is_and_has_no_value_without_lines(name):
    measure = MEASURES[name]
    assert measure.name == name and measure.title and measure.about.endswith(".")
    assert measure.goal in ("minimize", "maximize")
    assert value(name) is None
    assert value(name, shifts=(5,)) is None


def test_the_text_is_scored_by_the_last_evaluation():
    evaluations = [evaluation(0, 4.0), evaluation(10, 2.5)]
    assert value("bits_per_byte", evaluations=evaluations) == 2.5
    assert value("loss_per_target", evaluations=evaluations) == 5.0


def test_balance_has_to_last_for_ten_lines():
    late = [0.5, 0.99, *[0.98] * 3, *[0.995] * 11]
    assert value("steps_to_balance", training(late)) == 51
    assert value("steps_to_balance", training(late[:-1])) is None  # too close to the end to tell
    assert value("steps_to_balance", training([0.98] * 30)) is None
    assert value("steps_to_balance", training([0.99] * 11)) == 1


def test_logged_loads_are_pooled_over_ten_batches_before_their_entropy():
    flip, flop = [[0.7, 0.3], [0.3, 0.7]], [[0.3, 0.7], [0.7, 0.3]]  # two layers, two experts
    loads = [[[1.0, 0.0]] * 2] * 10 + [flip, flop] * 20
    train = training([0.8] * 50, load=loads)
    # Even on the whole from the tenth batch after the last one-sided one on (0.99 allows one).
    assert value("steps_to_balance", train) == 1 + 10 * 18
    assert value("steps_to_balance", training([0.8] * 50)) is None


def test_imbalance_is_of_the_whole_run_and_entropy_of_its_end():
    train = training([0.5] * 10 + [0.9] * 10)
    assert value("imbalance", train) == pytest.approx(0.3)
    assert value("final_load_entropy", train) == pytest.approx(0.9)
    assert value("final_load_entropy", training([0.5] * 19 + [0.7, 0.9])) == pytest.approx(2.1 / 3)


def test_lines_without_a_number_are_left_out():
    train = training([0.5, 0.6, 0.7])
    train[1]["load_entropy"] = [None, 0.9]
    assert value("imbalance", train) == pytest.approx(0.4)
    assert value("tokens_per_second", training([1, 1, 1], tokens_per_second=[None, 5, 7])) == 6


def test_the_end_of_a_run_by_layers():
    layers = [[9.0, 9.0]] * 9 + [[2.0, 3.0]]
    fields = {"dead_experts": layers, "routing_entropy": layers, "residual_norm": layers}
    train = training([1.0] * 10, **fields)
    assert value("dead_experts", train) == 5
    assert value("routing_entropy", train) == 2.5
    assert value("residual_growth", train) == 1.5
    assert value("residual_norm_last", train) == 3


def shifted(after, loads=None):
    """A run whose load entropy is 0.9, and that shifts after step 191."""
    entropies = [0.5] * 10 + [0.9] * 10 + after
    loads = [[0.2, 0.2]] * 20 + [[x, x] for x in loads or [0.2] * len(after)]
    return training(entropies, max_load=loads)


def test_recovery_is_when_load_entropy_is_back_for_good():
    def steps(after, shifts=(191,)):
        return value("recovery_steps", shifted(after), shifts=shifts)

    assert steps([0.8, 0.88, 0.95, 0.85, 0.892, 0.9]) == 50  # 0.891 is enough
    assert steps([0.9] * 4) == 0
    assert steps([0.8, 0.85]) is None  # not yet
    assert steps([0.8, 0.9, 0.9, 0.1], shifts=(191, 221)) == 20  # until the second
    assert steps([0.9], shifts=(1000,)) is None


@pytest.mark.parametrize("name", ["recovery_steps", "dip", "overshoot"])
def test_a_shift_that_a_rollback_moved_has_no_measure(name):
    train = shifted([0.7, 0.95, 0.95], [0.3, 0.5, 0.1])
    counted = [{**record, "rollbacks": 0} for record in train]
    assert value(name, counted, shifts=(191,)) == value(name, train, shifts=(191,)) is not None
    assert value(name, [*counted[:-1], {**counted[-1], "rollbacks": 1}], shifts=(191,)) is None


def test_dip_and_overshoot_tell_how_far_a_shift_goes():
    train = shifted([0.7, 0.6, 0.95], [0.3, 0.5, 0.1])
    assert value("dip", train, shifts=(191,)) == pytest.approx(0.3)
    assert value("overshoot", train, shifts=(191,)) == pytest.approx(0.3)
    assert value("dip", shifted([0.95]), shifts=(191,)) == 0
    assert value("overshoot", shifted([0.95], [0.1]), shifts=(191,)) == 0


def test_time_counts_all_that_was_written():
    assert value("seconds", training([1, 1]), [evaluation(7, 1.0)]) == 7


def test_what_was_known_at_an_evaluation():
    lines = Lines(training([0.5, 0.7, 0.9]), [evaluation(0, 3.0), evaluation(11, 2.0)])
    assert MEASURES["imbalance"](lines.until(11)) == pytest.approx(0.4)
    assert MEASURES["bits_per_byte"](lines.until(10)) == 3.0


def test_lines_are_read_from_a_run_directory(tmp_path):
    writer = Writer(tmp_path, 0)
    writer(0, {"heldout_bits_per_byte": 3.0})
    writer(1, {"loss": 2.0})
    writer(2, {"loss": float("nan")})
    writer.close()
    data = dataclasses.replace(BASE.data, mixture_schedule=((0, (1.0,)), (5, (2.0,))))
    lines = measures.read(tmp_path, dataclasses.replace(BASE, data=data))
    assert [record["step"] for record in lines.train] == [1, 2]
    assert [record["step"] for record in lines.evaluations] == [0]
    assert lines.shifts == (5,)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"objective": "bit_per_byte"}, "objective: no measure 'bit_per_byte'; did you mean bits"),
        ({"measures": ("dip", "zzz")}, "measures: no measure 'zzz'; there are: bits_per_byte"),
        ({"claims": (("dipp", "a", "a", "me"),)}, "claims: no measure 'dipp'; did you mean dip?"),
    ],
)
def test_an_unknown_measure_is_told(fields, told):
    with pytest.raises(ConfigError) as raised:
        measures.check(make(arms={"a": {}}, **fields))
    assert told in str(raised.value)
