"""Runs that train adapters: what they save, what stands under them, what they give back."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from zaya_jax import lora
from zaya_jax.config import Lora
from zaya_jax.errors import UserError
from zaya_jax.load import load
from zaya_jax.parallel import ONE_DEVICE
from zaya_jax.train import loop, metrics, start
from zaya_jax.train import state as train_state
from zaya_jax.train.weights import restore_trained, restore_weights


@pytest.fixture(scope="module")
def runs(experiment, listener, tmp_path_factory):
    """A base run and one of adapters over it, by the folders they are in."""
    root = tmp_path_factory.mktemp("runs")
    loop.train(experiment, root / "base", listener())
    adapted = dataclasses.replace(
        experiment,
        lora=dataclasses.replace(experiment.lora, rank=2),
        train=dataclasses.replace(experiment.train, init_from=str(root / "base")),
    )
    log = listener()
    loop.train(adapted, root / "adapted", log)
    assert "lora: rank 2" in log.text.getvalue()
    return root, adapted


@pytest.fixture
def copied(runs, tmp_path):
    """The same, to be written in, and found where the adapters' run looks for it."""
    shutil.copytree(runs[0], tmp_path / "runs")
    file = tmp_path / "runs" / "adapted" / "base.json"
    record = json.loads(file.read_text())
    record["path"] = record["path"].replace(str(runs[0]), str(tmp_path / "runs"))
    file.write_text(json.dumps(record))
    return tmp_path / "runs"


def test_a_checkpoint_holds_the_adapters_and_a_model_the_sum(runs):
    root, adapted = runs
    _, adapters, biases = restore_trained(root / "adapted")
    assert set(adapters) == set(lora.trained(adapted))
    _, base, base_biases = restore_weights(root / "base")
    jax.tree.map(np.testing.assert_array_equal, biases, base_biases)
    _, merged, _ = restore_weights(root / "adapted")
    expected = lora.merge(adapted.model, adapted.lora, base, adapters)
    jax.tree.map(np.testing.assert_array_equal, merged, expected)
    assert any(np.any(np.asarray(merged[path]) != base[path]) for path in base)
    loaded = load(root / "adapted", layers=adapted.model.layers)
    jax.tree.map(np.testing.assert_array_equal, dict(loaded.params), merged)


def test_an_evaluation_of_adapters_compiles_once(runs):
    lines = [record for record in metrics.read(runs[0] / "adapted") if "loss" in record]
    assert len({record["compilations"] for record in lines if record["step"] >= 3}) == 1


def test_a_base_that_moved_or_changed_is_named(copied):
    base = copied / "base"
    base.rename(copied / "elsewhere")
    with pytest.raises(UserError, match=r"adapters of .* stand on .*checkpoints/6, which cannot"):
        load(copied / "adapted")
    # What the message tells to do.
    file = copied / "adapted" / "base.json"
    record = json.loads(file.read_text())
    pinned = record["path"].replace(str(base), str(copied / "elsewhere"))
    file.write_text(json.dumps({**record, "path": pinned}))
    load(copied / "adapted")
    file.write_text(json.dumps({**record, "path": pinned.replace("/6", "/4")}))
    with pytest.raises(UserError, match="which are others now"):
        load(copied / "adapted")


def test_a_base_that_is_trained_on_stays_the_checkpoint_that_it_was(runs):
    record = json.loads((runs[0] / "adapted" / "base.json").read_text())
    assert record["path"].endswith("base/checkpoints/6")


def test_a_base_without_a_checkpoint_is_named(runs, experiment, tmp_path):
    from zaya_jax.train import workdir

    workdir.claim(experiment, tmp_path / "base")
    (tmp_path / "base" / "checkpoints").mkdir()
    train = dataclasses.replace(experiment.train, init_from=str(tmp_path / "base"))
    adapted = dataclasses.replace(runs[1], train=train)
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="no checkpoints yet"):
        start.load_base(adapted, tmp_path / "run")


def test_a_run_that_gives_its_state_away_can_go_back_to_its_start(runs):
    """The base's biases are needed again after a rollback: the step must not donate them."""
    _, adapted = runs
    first = train_state.init(dataclasses.replace(adapted, lora=Lora()))
    base = start.Weights(first.params, first.biases)
    expected = jax.tree.map(np.array, base.biases)
    give_away = jax.jit(lambda state: jax.tree.map(lambda x: x + x, state), donate_argnums=0)
    give_away(ONE_DEVICE.place(start.first_state(adapted, print, base)))
    again = start.first_state(adapted, print, base)
    jax.tree.map(np.testing.assert_array_equal, dict(again.biases), dict(expected))
