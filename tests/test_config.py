"""Mistakes in an experiment are told before anything is compiled, all at once, with what to do."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from zaya_jax import config
from zaya_jax.config import ConfigError, Experiment

EXPERIMENTS = sorted({*Path("experiments").glob("*.py")} - {Path("experiments/saved.py")})


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


FROZEN = {
    f"optim__factors__{group}": 0.0 for group in ("matrix", "embedding", "convolution", "vector")
}


def changed(**overrides):
    """A default ConfigDict with dotted fields (`__` for the dot) set, frozen."""
    settings = config.to_config_dict(Experiment())
    for name, value in overrides.items():
        *parents, field = name.split("__")
        node = settings
        for parent in parents:
            node = node[parent]
        with node.unlocked(), node.ignore_type():
            node[field] = value
    return config.freeze(settings)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda p: p.stem)
def test_every_experiment_freezes(path):
    experiment = config.freeze(load(path))
    assert experiment.name == path.stem


def test_config_survives_the_round_trip():
    experiment = config.freeze(load(Path("experiments/zaya1_74b.py")))
    assert config.from_dict(config.to_dict(experiment)) == experiment
    assert config.freeze(config.to_config_dict(experiment)) == experiment


def test_optional_field_can_be_set_by_an_override():
    settings = config.to_config_dict(Experiment())
    settings.model.attention.window = 128
    settings.model.attention.pattern = ("sliding",)
    assert config.freeze(settings).model.attention.window == 128


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(model__roter=3), r"no field 'model.roter'; did you mean router"),
        (
            dict(model__router__kind="mpl_eda"),
            r"model.router.kind = 'mpl_eda'; did you mean mlp_eda",
        ),
        (dict(model__ops__attention="xlaa"), r"model.ops.attention = 'xlaa'; did you mean xla"),
        (dict(model__attention__window=7), r"window = 7: no layer of .* is sliding"),
        (dict(model__attention__pattern=("full", 3)), r"pattern = 3: expected one of full, slid"),
        (dict(model__router__skip_bias=float("nan")), r"skip_bias = nan: expected a finite"),
        (dict(model__norm_eps=float("inf")), r"norm_eps = inf: expected a positive number"),
        (dict(optim__weight_decay=-1.0), r"weight_decay = -1.0: expected 0 or more"),
        (dict(train__seed=-1), r"train.seed = -1: expected 0 or more"),
        (dict(model__num_layers="many"), r"model.num_layers = 'many': expected int"),
        (dict(model__residual_scaling=1), r"residual_scaling = 1: expected bool"),
        (dict(model__num_layers=True), r"num_layers = True: expected int"),
        (dict(model__attention__heads=7), r"heads = 7: not a multiple of kv_heads = 2"),
        (dict(model__attention__rope_fraction=0.3), r"rope_fraction = 0.3"),
        (dict(model__attention__conv_kernels=(2, 0)), r"conv_kernels = \(2, 0\)"),
        (dict(model__attention__conv_kernels=(2, 2, 2)), r"\(2, 2, 2\): expected at most two"),
        (
            dict(model__attention__pattern=("sliding",)),
            r"window = None: sliding layers need a span",
        ),
        (dict(model__attention__pattern=("full", "full", "full")), r"num_layers = 40: not a multi"),
        (dict(model__router__top_k=17), r"top_k = 17: more than model.router.experts = 16"),
        (dict(model__vocab_size=0), r"vocab_size = 0: expected a positive"),
        (dict(model__eos_id=300_000), r"eos_id = 300000: outside the vocabulary"),
        (dict(model__param_dtype="float64"), r"float64 must be chosen for both"),
        (dict(train__sequence_length=200_000), r"longer than model.context_length"),
        (dict(optim__warmup_steps=1000), r"warmup_steps = 1000: expected less than train.steps"),
        (dict(balance__kind="pdi"), r"balance.kind = 'pdi'"),
        (dict(balance__rate=float("inf")), r"balance.rate = inf: expected a positive number"),
        (FROZEN, r"optim.factors are all 0: nothing would be trained"),
        (
            dict(lora__rank=2, optim__factors__matrix=0.0),
            r"optim.factors.matrix = 0: adapters are in this group",
        ),
        (dict(data__heldout_fraction=1.5), r"heldout_fraction = 1.5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_mistake_names_the_field_and_what_would_do(overrides, message):
    with pytest.raises(ConfigError, match=message):
        changed(**overrides)


def test_all_mistakes_are_told_together():
    with pytest.raises(ConfigError) as raised:
        changed(model__attention__heads=7, model__router__skip="zreo", train__steps=0)
    text = str(raised.value)
    assert all(field in text for field in ("heads", "model.router.skip", "train.steps"))
