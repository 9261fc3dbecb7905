"""Mistakes in a sweep are told before anything is drawn, with the field and what would do."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from tests.sweep.fakes import GAINS, behaves, make
from tests.train.conftest import MODEL
from zaya_jax import config
from zaya_jax.config import ConfigError, Range
from zaya_jax.sweep import measures, plan, table

SWEEPS = [
    path
    for folder in ("sweeps", "ablations")
    for path in sorted(Path("experiments", folder).glob("*.py"))
    if path.stem != "base"
]


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: f"{path.parent.stem}-{path.stem}")
def test_every_sweep_freezes_and_its_commands_can_be_typed(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sweep = config.freeze_sweep(module.get_config())
    measures.check(sweep)
    assert sweep.about
    command = plan.command_of(sweep, sweep.base, Path("x.json"))
    assert f"--config={sweep.file}" in command
    known = table.known_beforehand(sweep)
    assert known or sweep.search in ("random", "tpe")


def test_a_sweep_survives_the_round_trip():
    space = {**GAINS, "model": {"attention": {"conv_kernels": ((2, 2), ())}}}
    for sweep in (
        make(search="tpe", space=space),
        make(arms={"b": {"model": {"attention": {"conv_kernels": ()}}}, "a": {}}),
    ):
        assert config.freeze_sweep(config.sweep_to_config_dict(sweep)) == sweep
        again = config.freeze_sweep(config.sweep_to_config_dict(sweep))
        assert list(again.arms) == list(sweep.arms)  # in the order they are written


def test_spaces_and_arms_hold_what_the_experiment_does():
    """Lists and whole numbers, as JSON and flags give them."""
    sweep = config.sweep_from_dict(
        {
            "search": "grid",
            "space": {
                "balance": {"kp": [0, 1]},
                "model": {"attention": {"conv_kernels": [[2, 2], []]}},
            },
        }
    )
    assert config.space(sweep) == {
        "balance.kp": (0.0, 1.0),
        "model.attention.conv_kernels": ((2, 2), ()),
    }
    sweep = make(search="tpe", space={"model": {"num_layers": {"low": 1, "high": 4}}})
    assert config.space(sweep) == {"model.num_layers": Range(1, 4, False)}
    sweep = config.sweep_from_dict({"arms": {"a": {"lora": {"targets": ["q"]}}}})
    assert config.arms(sweep) == {"a": {"lora.targets": ("q",)}}


def kp(leaf, search="tpe"):
    return {"search": search, "arms": {}, "space": {"balance": {"kp": leaf}}}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (kp(()), "space.balance.kp is empty: expected values to try"),
        (kp((0.1, 0.1)), "space.balance.kp has 0.1 twice"),
        (kp(("a",)), "space.balance.kp has 'a': expected float"),
        (kp(0.1), "space.balance.kp = 0.1: expected a tuple of values, or a range with low and"),
        (kp({"low": 0.1, "high": 0.1}), "space.balance.kp is empty: low = 0.1, high = 0.1"),
        (kp({"low": 0.1, "high": float("inf")}), "balance.kp is empty: low = 0.1, high = inf"),
        (kp({"low": 0.0, "high": 1, "log": True}), "kp.low = 0.0: expected more than 0, since log"),
        (kp({"low": 0.0}), "space.balance.kp = {'low': 0.0}: expected a range with low and high"),
        (kp({"low": 0, "hihg": 1}), "no field 'space.balance.kp.hihg'; did you mean high?"),
        (kp({"low": "a", "high": 1}), "of low and high, expected float"),
        (kp({"low": 0, "high": 1, "log": 1}), "space.balance.kp.log = 1: expected bool"),
        (kp({"low": 0, "high": 1}, "grid"), "is a range: search = grid expects a tuple of values"),
        (
            {"search": "tpe", "arms": {}, "space": {"balance": {"kind": {"low": 0, "high": 1}}}},
            "space.balance.kind is a range, but the field is no number",
        ),
        (
            {"search": "tpe", "arms": {}, "space": {"balance": {"rat": (1,)}}},
            "no field 'space.balance.rat'; did you mean rate?",
        ),
        (
            {"search": "tpe", "arms": {}, "space": {"balance": (1,)}},
            "space.balance: expected fields of this section",
        ),
        (
            {"search": "tpe", "arms": {}, "space": {"train": {"seed": (1, 2)}}},
            "space.train.seed: seeds are an axis of their own",
        ),
        ({"search": "tpe"}, "space is empty: search = tpe has nothing to try"),
        ({"search": "grad"}, "search = 'grad'; did you mean grid?"),
        ({"arms": {}}, "arms is empty: search = arms has nothing to try"),
        ({"space": GAINS}, "space is given, but search = arms goes through arms"),
        ({"arms": {"a": {"modle": {"x": 1}}}}, "no field 'arms.a.modle'; did you mean model?"),
        ({"arms": {"a": {"balance": {"kp": "x"}}}}, "arms.a.balance.kp = 'x': expected float"),
        ({"arms": {"a": {"train": {"seed": 3}}}}, "arms.a.train.seed: seeds are an axis of their"),
        ({"arms": {"a": 3}}, "arms.a = 3: expected sections with fields"),
        ({"seeds": ()}, "seeds is empty"),
        ({"seeds": (0, 1, 0)}, "seeds has 0 twice"),
        ({"seeds": (0, -1)}, "seeds has -1: expected whole numbers from 0"),
        ({"trials": 0}, "trials = 0: expected at least 1"),
        ({"at_once": 0}, "at_once = 0: expected at least 1"),
        ({"pruning": {"kind": "mean"}}, "pruning.kind = 'mean'; did you mean median?"),
        ({"pruning": {"after_trials": 0}}, "pruning.after_trials = 0: expected at least 1"),
        ({"claims": (("dip", "a", "c", "me"),)}, "claims: no arm 'c'; there are: a"),
        ({"claims": (("dip", "a"),)}, "claims has ('dip', 'a'): expected (measure, better arm"),
        ({"base": {"train": {"steps": 0}}}, "base.train.steps = 0: expected a positive"),
        ({"base": {"trian": {}}}, "no field 'base.trian'; did you mean train?"),
        ({"sede": 1}, "no field 'sede'; did you mean seeds?"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_a_mistake_names_the_field_and_what_would_do(fields, told):
    with pytest.raises(ConfigError) as raised:
        config.sweep_from_dict({"arms": {"a": {}}, **fields})
    assert told in str(raised.value)


def test_all_mistakes_are_told_together():
    with pytest.raises(ConfigError) as raised:
        config.sweep_from_dict({"arms": {"a": {"balance": {"kp": "x"}}}, "seeds": (), "trials": 0})
    text = str(raised.value)
    assert all(field in text for field in ("arms.a.balance.kp", "seeds", "trials"))


def test_an_arm_whose_network_cannot_be_built_has_no_costs_and_keeps_none_back():
    arms = {"right": {}, "wrong": {"model": {"router": {"kind": "tests.test_extending:few"}}}}
    base = dataclasses.replace(behaves("well", sequence_length=32), model=MODEL)
    sweep = make(base, arms=arms)
    told = table.intro(sweep, table.known_beforehand(sweep), 1)
    assert "  right " in told and "  wrong " not in told
