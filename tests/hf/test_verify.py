"""The verbs end to end, and `verify` telling equal from different."""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zaya_jax import cli, load
from zaya_jax.config import Experiment, Train, to_dict
from zaya_jax.errors import UserError
from zaya_jax.hf import cli_export, open_folder, verify, write_folder
from zaya_jax.hf.oracle import Oracle
from zaya_jax.hf.verify import Result, table
from zaya_jax.model.functional import parameter_count


def run(*argv) -> int:
    return cli.main([str(arg) for arg in argv])


@pytest.mark.filterwarnings("ignore:the skip class's balancing bias")
def test_import_export_verify(small, spread, tmp_path, capsys):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model, legacy = small(param_dtype="bfloat16", num_layers=2), tmp_path / "legacy"
    # from_pretrained sets the skip class's bias to -1; verify must set it right again.
    write_folder(model, *spread(model, skip_bias=-0.1), legacy, layout="legacy")
    imported, out, record = tmp_path / "i", tmp_path / "out", tmp_path / "v.json"
    assert run("import", f"--from={legacy}", f"--out={imported}") == 0
    assert f"{parameter_count(model):,} parameters" in capsys.readouterr().out
    assert run("export", f"--model={imported}", f"--out={out}", "--layout=native") == 0
    assert "67 tensors in bfloat16, native layout" in capsys.readouterr().out

    common = ("--tokens=6", f"--json={record}")
    assert run("verify", f"--model={imported}", f"--against={out}", *common) == 0
    found = json.loads(record.read_text())
    assert found["ok"] and len(found["prompts"]) == 3
    assert all(p["gap"] < 5e-6 and p["agreed"] == 6 for p in found["prompts"])
    assert all(0 < p["rounding"] < 5e-6 for p in found["prompts"])

    # One scale vector that is off by a hundredth is not the same model.
    values = load_file(out / "model.safetensors")
    scale = values["model.layers.1.post_mlp_residual_scale.hidden_states_scale"]
    scale[:] = scale * np.float32(1.01)
    save_file(values, out / "model.safetensors", metadata={"format": "pt"})
    common = ("--tokens=2", "--nonoise", f"--json={record}")
    assert run("verify", f"--model={imported}", f"--against={out}", *common) == 1
    assert "DIFFERS" in capsys.readouterr().out
    assert not json.loads(record.read_text())["ok"]


def test_mistakes_on_the_command_line(native, legacy, tmp_path, capsys):
    out = f"--out={tmp_path / 'x'}"
    for argv, word in (
        (("import", f"--from={tmp_path / 'no'}", out), "no such folder"),
        (("import", f"--from={native}"), "--out is missing"),
        (("import", f"--from={legacy}", out, "--layout=native"), "legacy layout"),
        (("export", f"--model={tmp_path / 'no'}", out), "no such folder"),
        (("export", f"--model={native}", f"--out={native}"), "must lie outside"),
        (("verify", f"--model={native}", "--prompt=x"), "no tokenizer"),
    ):
        assert run(*argv) == 2
        assert word in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_the_model_card_speaks_of_the_checkpoint_that_was_loaded(tmp_path):
    experiment = Experiment(name="mine", train=Train(sequence_length=32, batch_size=4))
    (tmp_path / "config.json").write_text(json.dumps(to_dict(experiment)))
    records = [
        {"step": 0, "heldout_bits_per_byte": 8.0},
        {"step": 2, "heldout_bits_per_byte": 3.0},
        {"step": 4, "loss": 1.0},
        {"step": 6, "heldout_bits_per_byte": 2.0},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(lines)
    for name in ("2", "10", "damaged-12"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert cli_export.step_of(load.locate(tmp_path)) == 10
    assert cli_export.step_of(load.locate(tmp_path / "checkpoints" / "2")) == 2
    facts = cli_export.training_facts(tmp_path, 2)
    assert facts["training"] == "2 steps of 4 rows of 32 tokens"
    assert facts["held-out bits per byte"] == "3.000"
    facts = cli_export.training_facts(tmp_path, 4)
    assert facts["held-out bits per byte after 2 steps"] == "3.000"
    assert "held-out bits per byte" not in facts


def result(**fields) -> Result:
    good = Result("p", 3, 1e-6, 1e-7, 1e-7, 1e-5, 8, 8, False)
    return dataclasses.replace(good, **fields)


def test_what_counts_as_the_same():
    assert result().ok
    assert not result(gap=2e-5).ok
    assert not result(gap=float("inf")).ok
    assert not result(agreed=3).ok
    assert result(agreed=3, tie=True).ok
    assert "DIFFERS" in table([result(gap=1.0, rounding=None)])


def test_prompts_are_checked(small):
    model = small()
    for ids, word in (([], "empty"), ([1] * 128, "128"), ([1, 96], "not below 96")):
        with pytest.raises(UserError, match=word):
            verify.check_prompts(model, {"p": ids}, 1)
    with pytest.raises(UserError, match="no prompt .* context holds 128; compare fewer by --tok"):
        verify.check_prompts(model, {}, 128)


def test_without_transformers_it_says_what_to_install(native, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="pip install torch transformers"):
        Oracle(open_folder(native))
