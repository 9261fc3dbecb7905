"""The command of a trial, typed, is the trial; arms differ in nothing but their fields."""

import dataclasses
import json
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from tests.sweep.fakes import BASE, make
from zaya_jax import cli, config, data, load, options
from zaya_jax.config import rl, to_dict
from zaya_jax.sweep import plan

FILE = """
from zaya_jax import config

def get_config(steps="50"):
    train = config.Train(steps=int(steps))
    optim = config.Optim(warmup_steps=5)
    return config.to_config_dict(config.Experiment(name="file", train=train, optim=optim))
"""

FIELDS = [
    {"balance.kp": 1e-5},
    {"balance.kp": 0.1 + 0.2, "balance.kind": "pid"},
    {"model.router.kind": "linear", "model.router.depth": 3},
    {"model.residual_scaling": False, "model.attention.conv_kernels": ()},
    {"model.attention.conv_kernels": (3,), "lora.targets": ("q",)},
    {"data.source": "a 'quoted' folder; rm -rf", "data.tokenizer": "x/y z.json"},
    {"data.mixture": (("a b", 1.5), ("c", 2.0)), "train.peak_tflops": 3.5},
    {"data.heldout_max_bytes": None},
]


@pytest.fixture
def typed(monkeypatch):
    """What `launch.py train` would train if a command was typed in a shell."""
    found = {}
    verb = types.ModuleType("made_up_train")
    verb.define_flags = options.config
    verb.main = lambda argv: found.update(experiment=load.experiment(flags.FLAGS.config))
    monkeypatch.setitem(sys.modules, verb.__name__, verb)

    def parse(command):
        python, launch, *arguments = shlex.split(command)
        assert (python, launch) == ("python", "launch.py")
        assert cli.main(arguments, {"train": cli.Verb(verb.__name__, "", ())}) == 0
        return found["experiment"]

    return parse


@pytest.mark.parametrize("argument", ["", ":70"])
@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: next(iter(fields)))
def test_the_command_of_a_trial_is_the_trial(fields, argument, typed, tmp_path):
    file = tmp_path / "file.py"
    file.write_text(FILE)
    data = dataclasses.replace(BASE.data, heldout_max_bytes=1000)
    sweep = make(dataclasses.replace(BASE, data=data), arms={"a": {}}, file=f"{file}{argument}")
    experiment = plan.experiment_of(sweep, fields, 7)
    saved = tmp_path / "seed-7.json"
    saved.write_text(json.dumps(to_dict(experiment)))
    command = plan.command_of(sweep, experiment, saved)
    assert typed(command) == experiment
    assert experiment.train.seed == 7
    assert command.startswith(f"python launch.py train --config={file}{argument} ")
    assert "weight_decay" not in command  # only what differs


@pytest.mark.parametrize("file", ["", "nowhere.py"])
def test_without_a_file_the_command_names_the_resolved_config(file, typed, tmp_path):
    sweep = make(arms={"a": {}}, file=file)
    experiment = plan.experiment_of(sweep, {"balance.kp": 0.3}, 1)
    saved = tmp_path / "a folder" / "seed-1.json"
    saved.parent.mkdir()
    saved.write_text(json.dumps(to_dict(experiment)))
    command = plan.command_of(sweep, experiment, saved)
    assert "experiments/saved.py:" in command
    assert typed(command) == experiment


def test_a_saved_config_that_is_not_there_is_told(capsys):
    assert cli.main(["train", "--config=experiments/saved.py"]) == 2
    assert "expected saved.py:RUN/config.json" in capsys.readouterr().err
    assert cli.main(["train", "--config=experiments/saved.py:no/config.json"]) == 2
    assert "experiments/saved.py:no/config.json: " in capsys.readouterr().err


def test_fields_as_a_name():
    fields = {"balance.kp": 0.1 + 0.2, "balance.kind": "pid", "model.attention.conv_kernels": (2,)}
    assert plan.name_of(fields) == (
        "balance.kp=0.3 balance.kind=pid model.attention.conv_kernels=(2,)"
    )


def test_arms_get_the_same_batches_under_the_same_seed(tmp_path):
    """The order of the data is a function of the data section, sizes and seed; no arm has a say."""
    text = tmp_path / "text"
    text.mkdir()
    for i in range(12):
        (text / f"{i}.txt").write_text("\n".join(f"line {j} of {i}" for j in range(200)))
    arms = {
        "cca": {},
        "linear": {"model": {"router": {"kind": "linear"}}, "balance": {"kind": "sign"}},
        "wide": {"model": {"hidden_size": 96, "expert_width": 8}, "optim": {"kind": "muon"}},
    }
    base = dataclasses.replace(
        BASE,
        model=dataclasses.replace(BASE.model, vocab_size=300, pad_id=0, eos_id=1, bos_id=2),
        data=dataclasses.replace(
            BASE.data, source=str(text), heldout_fraction=0.2, cache_dir=str(tmp_path / "cache")
        ),
        train=dataclasses.replace(BASE.train, batch_size=2, sequence_length=32),
    )
    sweep = make(base, arms=arms)

    def batches(arm, seed):
        from zaya_jax import config

        experiment = plan.experiment_of(sweep, config.arms(sweep)[arm], seed)
        prepared = data.prepare(
            experiment.data,
            vocab_size=experiment.model.vocab_size,
            sequence_length=experiment.train.sequence_length,
            batch_size=experiment.train.batch_size,
            seed=experiment.train.seed,
        )
        return np.stack([prepared.train.batch(cursor).tokens for cursor in range(6)])

    first = {seed: batches("cca", seed) for seed in (0, 1)}
    assert not np.array_equal(first[0], first[1])
    for arm in ("linear", "wide"):
        for seed in (0, 1):
            np.testing.assert_array_equal(batches(arm, seed), first[seed])


def test_a_run_may_begin_where_one_of_its_seed_ended():
    sweep = config.Sweep(base=config.Experiment(train=config.Train(init_from="a/seed-{seed}")))
    assert plan.experiment_of(sweep, {}, 2).train.init_from == "a/seed-2"
    assert plan.experiment_of(sweep, {"train.init_from": "b/{seed}"}, 1).train.init_from == "b/1"


def test_what_asks_tasks_is_run_by_rl():
    asks = config.Experiment(rl=rl.RL(tasks=(("t.jsonl", 1.0),)))
    assert plan.verb_of(asks) == "rl" and plan.verb_of(config.Experiment()) == "train"
    assert plan.command_of(config.Sweep(), asks, Path("s.json")).startswith("python launch.py rl ")
