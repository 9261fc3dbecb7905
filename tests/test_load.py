"""`--model=`: every form it accepts, and what it says of everything else."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from zaya_jax.config import Attention, Experiment, Model, Router, Train
from zaya_jax.data.tokenizer import train_bpe
from zaya_jax.errors import UserError
from zaya_jax.hf import write_folder
from zaya_jax.load import load, pinned
from zaya_jax.model import forms, functional
from zaya_jax.train import state as train_state
from zaya_jax.train import workdir
from zaya_jax.train.checkpoint import Checkpoints

MODEL = Model(
    vocab_size=300,
    hidden_size=32,
    num_layers=2,
    expert_width=16,
    context_length=32,
    attention=Attention(heads=2, kv_heads=1, head_dim=16),
    router=Router(experts=4, width=16),
)
EXPERIMENT = Experiment(model=MODEL, train=Train(sequence_length=32))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with checkpoints of steps 0 and 5."""
    folder = tmp_path_factory.mktemp("run")
    workdir.claim(EXPERIMENT, folder)
    checkpoints = Checkpoints(folder, EXPERIMENT)
    state = train_state.init(EXPERIMENT)
    checkpoints.save(state)
    params = {name: value + 1 for name, value in state.params.items()}
    checkpoints.save(state.replace(step=state.step + 5, params=params))
    checkpoints.close()
    train_bpe(["some text " * 20], 290).save(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A Hugging Face folder without a tokenizer."""
    params, biases = functional.init(MODEL, jax.random.key(1))
    return write_folder(MODEL, params, biases, tmp_path_factory.mktemp("hf") / "model")


def test_a_run_gives_its_newest_weights_unrolled(run):
    loaded = load(run)
    params, _ = functional.init(dataclasses.replace(MODEL, layers="unroll"), jax.random.key(0))
    assert loaded.model.layers == "unroll" and loaded.params.keys() == params.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(loaded.params[name], value + 1, err_msg=name)
    assert loaded.params.keys() == functional.declarations(loaded.model).keys()
    assert loaded.require_tokenizer().decode(loaded.tokenizer.encode("text")) == "text"


def test_special_ids_of_a_run_are_those_of_its_tokenizer(run):
    loaded = load(run)
    assert loaded.model.eos_id == loaded.tokenizer.eos_id != MODEL.eos_id
    assert loaded.stop_ids == {loaded.tokenizer.eos_id}
    assert loaded.start_id == loaded.tokenizer.bos_id


def test_a_checkpoint_is_named_by_its_folder(run):
    first, newest = load(run / "checkpoints" / "0"), load(run / "checkpoints")
    assert (first.source.step, newest.source.step) == (0, None)
    np.testing.assert_array_equal(first.params["final_norm"] + 1, newest.params["final_norm"])


def test_a_run_is_pinned_to_its_newest_checkpoint(run, folder, tmp_path):
    steps = [int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    assert pinned(run) == pinned(run / "checkpoints") == run / "checkpoints" / str(max(steps))
    assert pinned(run / "checkpoints" / "0") == run / "checkpoints" / "0"
    assert pinned(folder) == folder


def test_a_hugging_face_folder(folder):
    loaded = load(folder)
    params, _ = functional.init(MODEL, jax.random.key(1))
    np.testing.assert_array_equal(loaded.params["embedding"], params["embedding"])
    assert loaded.stop_ids == {MODEL.eos_id} and loaded.start_id == MODEL.bos_id
    with pytest.raises(UserError, match="no tokenizer: text needs a tokenizer.json"):
        loaded.require_tokenizer()


def test_form_and_precision_are_choices(folder):
    loaded = load(folder, layers="scan", param_dtype="bfloat16", activation_dtype="bfloat16")
    assert loaded.params.keys() == functional.declarations(loaded.model).keys()
    assert loaded.model.layers == "scan"
    assert {str(value.dtype) for value in loaded.params.values()} == {"bfloat16"}
    assert {str(value.dtype) for value in loaded.biases.values()} == {"float32"}


def test_weights_of_a_run_are_cast_before_their_stacks_are_taken_apart(run, monkeypatch):
    given, convert = [], forms.convert

    def look(model, params, biases, layers, consume):
        given.extend(params.values())
        converted = convert(model, params, biases, layers, consume=consume)
        assert not params and not biases  # what was copied is released
        return converted

    monkeypatch.setattr(forms, "convert", look)
    loaded = load(run, param_dtype="bfloat16")
    assert loaded.model.layers == "unroll"
    assert {str(value.dtype) for value in [*given, *loaded.params.values()]} == {"bfloat16"}


def test_the_settings_of_a_tokenizer_say_whether_text_opens_with_bos(folder, tmp_path):
    copy = tmp_path / "model"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    train_bpe(["some text " * 20], 290).save(copy)
    assert not load(copy).opens_with_bos
    (copy / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))
    loaded = load(copy)
    assert loaded.opens_with_bos
    assert loaded.require_tokenizer().eos_id == MODEL.eos_id  # the settings name none
    (copy / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer_config.json: not a tokenizer's settings"):
        load(copy)
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a tokenizer.json"):
        load(copy)


def test_nothing_there(tmp_path):
    with pytest.raises(UserError, match="no such folder; a model of the Hugging Face hub"):
        load(tmp_path / "Zyphra" / "ZAYA1-8B")


def test_none_of_the_forms(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="neither a run directory.*it holds notes.txt"):
        load(tmp_path)
    with pytest.raises(UserError, match="a file; expected the folder"):
        load(tmp_path / "notes.txt")


def test_a_step_that_is_not_there(run, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load(run / "checkpoints" / "7")
    workdir.claim(EXPERIMENT, tmp_path)
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    with pytest.raises(UserError, match="no checkpoints yet"):
        load(tmp_path)
