"""What is written: refusals field by field, whole folders or none, and transformers reads it."""

from __future__ import annotations

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zaya_jax.config import Router
from zaya_jax.hf import CheckpointError, convert_folder, import_folder, open_folder, write_folder
from zaya_jax.hf.atomic import atomic_folder
from zaya_jax.model.functional import merge


def test_transformers_loads_it_and_gives_our_logits(small, spread, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = small(num_layers=2)
    params, biases = spread(model)
    out = write_folder(model, params, biases, tmp_path / "out")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(out, attn_implementation="eager")
    assert type(oracle).__name__ == "ZayaForCausalLM"
    ids = np.random.default_rng(0).integers(96, size=(2, 33))
    with torch.no_grad():
        theirs = oracle(torch.tensor(ids)).logits.numpy()

    @jax.jit
    def run(params, biases, tokens):
        network = merge(model, params, biases)
        return network.logits(network(tokens).hidden)

    ours = np.asarray(run(params, biases, ids))
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_everything_a_user_needs_is_written(small, spread, tmp_path):
    model = small()
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    (tokenizer / "other").write_text("")
    out = write_folder(
        model,
        *spread(model),
        tmp_path / "out",
        tokenizer_dir=tokenizer,
        facts={"held-out bits per byte": 1.5},
    )
    files = {path.name for path in out.iterdir()}
    assert files == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    card = (out / "README.md").read_text()
    assert card.startswith("---\n") and "| held-out bits per byte | 1.5 |" in card
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == 1
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"


def test_casting_leaves_balancing_biases(small, spread, tmp_path):
    model = small()
    weights = spread(model)
    out = open_folder(write_folder(model, *weights, tmp_path / "out", dtype="bfloat16"))
    kinds = {name: entry.dtype.name for name, entry in out.reader.entries.items()}
    for name, dtype in kinds.items():
        assert dtype == ("float32" if name.endswith("balancing_biases") else "bfloat16")
    assert out.model.param_dtype == "bfloat16"


def test_shards_have_an_index(small, spread, tmp_path):
    model = small()
    out = write_folder(model, *spread(model), tmp_path / "out", max_shard_gb=5e-5)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == files and len(files) > 2
    assert all((out / name).stat().st_size < 60e3 for name in files)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"router": {"kind": "mlp"}}, ["model.router.kind = 'mlp'"]),
        ({"router": {"kind": "linear"}}, ["model.router.kind = 'linear'"]),
        ({"router": {"top_k": 2}}, ["model.router.top_k = 2"]),
        ({"router": {"skip": "none"}}, ["model.router.skip = 'none'"]),
        ({"router": {"depth": 3}}, ["model.router.depth = 3: only 2 exists"]),
        ({"attention": {"kind": "gqa"}}, ["model.attention.kind = 'gqa'"]),
        ({"attention": {"kind": "mha"}}, ["model.attention.kind = 'mha'"]),
        ({"attention": {"kind": "mla"}}, ["model.attention.kind = 'mla'"]),
        (
            {"attention": {"conv_kernels": (2,), "qk_mean": False, "value_shift": False}},
            [
                "model.attention.conv_kernels = (2,): there are always two",
                "model.attention.qk_mean = False",
                "model.attention.value_shift = False",
            ],
        ),
        ({"residual_scaling": False}, ["model.residual_scaling = False"]),
        (
            {"attention": {"kind": "gqa"}, "router": {"top_k": 2, "skip": "none"}},
            ["attention.kind", "router.top_k", "router.skip"],
        ),
        ({"router": {"skip": "passthrough"}}, ["'passthrough'", "layers 0, 1, 2, 3"]),
    ],
)
def test_what_zaya_cannot_express_is_refused_by_field(small, spread, tmp_path, changes, words):
    model = small()
    for field, change in changes.items():
        part = getattr(model, field)
        if isinstance(change, dict):
            change = dataclasses.replace(part, **change)
        model = dataclasses.replace(model, **{field: change})
    with pytest.raises(CheckpointError) as error:
        write_folder(model, *spread(model, skip_bias=-0.5), tmp_path / "out")
    for word in words:
        assert word in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_passthrough_is_fine_where_no_token_can_skip(small, spread, tmp_path):
    model = small(router=Router(experts=3, width=12, skip="passthrough"))
    params, biases = spread(model)
    never = {path: jnp.array([0.01, -0.2, 0, -1]) for path in biases}
    write_folder(model, params, never, tmp_path / "out")
    path = next(iter(never))
    never[path] = jnp.array([0.0, -0.2, 0, -1])  # p_skip - 1 may reach 0
    with pytest.raises(CheckpointError, match="tokens can skip in layers 0$"):
        write_folder(model, params, never, tmp_path / "out2")


def test_deviations_of_transformers_are_warned_of(small, spread, tmp_path):
    model = small(residual_in_fp32=False)
    with pytest.warns(UserWarning) as caught:
        write_folder(model, *spread(model, skip_bias=-0.5), tmp_path / "out")
    text = " ".join(str(w.message) for w in caught)
    assert "residual_in_fp32" in text and "not -1 in layers 0, 1, 2, 3" in text
    assert not open_folder(tmp_path / "out").model.residual_in_fp32


def test_weights_of_another_model_are_refused(small, spread, tmp_path):
    model = small()
    params, biases = spread(model)
    params["final_norm"] = params["final_norm"][:-1]
    params["x"] = params.pop("input_bias")
    with pytest.raises(CheckpointError, match="missing input_bias; unknown x; final_norm has"):
        write_folder(model, params, biases, tmp_path / "out")


# --- Whole or absent ----------------------------------------------------------------------------


def test_a_folder_is_not_overwritten_by_accident(native, tmp_path):
    folder = open_folder(native)
    out = tmp_path / "out"
    convert_folder(folder, out)
    with pytest.raises(CheckpointError, match="not empty.*--overwrite"):
        convert_folder(folder, out)
    convert_folder(folder, out, layout="legacy", overwrite=True)
    assert open_folder(out).layout == "legacy"
    imported = import_folder(native, tmp_path / "imported").path
    import_folder(native, imported, overwrite=True)
    home = tmp_path / "home"
    home.mkdir()
    (home / "README.md").write_text("mine")
    with pytest.raises(CheckpointError, match="no config.json and no zaya.json"):
        convert_folder(folder, home, overwrite=True)
    with pytest.raises(CheckpointError, match="is a file"):
        convert_folder(folder, out / "config.json")


@pytest.mark.parametrize(
    "name",
    ["thesis.tex", "pytorch_model.bin", "model.py", "photos/", "origin/notes", "tokenizer/a/b"],
)
def test_a_folder_with_files_of_others_is_never_overwritten(native, tmp_path, name):
    out = tmp_path / "out"
    convert_folder(open_folder(native), out)
    mine = out / name
    (mine if name.endswith("/") else mine.parent).mkdir(parents=True, exist_ok=True)
    if not name.endswith("/"):
        mine.write_text("mine")
    before = sorted(out.rglob("*"))
    with pytest.raises(CheckpointError, match=f"not overwritten.*{name.rstrip('/')}"):
        convert_folder(open_folder(native), out, overwrite=True)
    assert sorted(out.rglob("*")) == before


def test_a_swap_that_fails_or_is_killed_loses_nothing(tmp_path, monkeypatch):
    out = tmp_path / "out"

    def write(text):
        with atomic_folder(out, needs=0, overwrite=True) as scratch:
            (scratch / "config.json").write_text(text)

    write("old")
    rename = os.rename

    def interrupted(source, target):
        if str(source).endswith(".partial"):
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write("new")
    monkeypatch.undo()
    assert (out / "config.json").read_text() == "old" and list(tmp_path.iterdir()) == [out]
    # Killed between the renames, with the scratch folder left behind.
    out.rename(tmp_path / ".out-0123abcd.replaced")
    (tmp_path / ".out-0123abcd.partial").mkdir()
    with pytest.warns(UserWarning) as caught, pytest.raises(CheckpointError, match="no room"):
        with atomic_folder(out, needs=10**18, overwrite=True):
            raise AssertionError("not reached")
    assert (out / "config.json").read_text() == "old"
    told = " ".join(str(w.message) for w in caught)
    assert "out: restored" in told and ".out-0123abcd.partial: left by a run" in told


def test_a_linked_folder_is_replaced_where_it_lies(native, tmp_path):
    real, link = tmp_path / "disk" / "real", tmp_path / "link"
    convert_folder(open_folder(native), real)
    link.symlink_to(real)
    convert_folder(open_folder(native), link, layout="legacy", overwrite=True)
    assert link.is_symlink() and open_folder(real).layout == "legacy"


def test_what_is_read_is_not_written_to(native, tmp_path):
    folder = open_folder(native)
    for out in (native, native / "inside", native.parent):
        with pytest.raises(CheckpointError, match="must lie outside"):
            convert_folder(folder, out, overwrite=True)
        with pytest.raises(CheckpointError, match="must lie outside"):
            import_folder(native, out, overwrite=True)


def test_a_write_that_fails_leaves_nothing(native, tmp_path, monkeypatch):
    import zaya_jax.hf.weights as weights

    out = tmp_path / "out"
    convert_folder(open_folder(native), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "write_file", full)
    for target in (out, tmp_path / "new"):
        with pytest.raises(CheckpointError, match="No space left"):
            convert_folder(open_folder(native), target, layout="legacy", overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"native", "out"}


def test_a_disk_that_is_too_small_is_seen_first(tmp_path):
    with pytest.raises(CheckpointError, match="no room"):
        with atomic_folder(tmp_path / "out", needs=10**18):
            raise AssertionError("not reached")


def test_the_licence_goes_with_the_weights_into_another_layout(native, tmp_path):
    (native / "LICENSE").write_text("Apache")
    (native / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    imported = import_folder(native, tmp_path / "i")
    out = convert_folder(imported, tmp_path / "out", layout="legacy")
    assert (out / "LICENSE").read_text() == "Apache"
    assert "[1, 2]" in (out / "generation_config.json").read_text()


def test_headers_that_do_not_fit_are_refused(native, tmp_path):
    imported = import_folder(native, tmp_path / "i").path
    header = next((imported / "origin").glob("*.header"))
    text = header.read_bytes().replace(b"model.norm.weight", b"model.morn.weight")
    header.write_bytes(text)
    with pytest.raises(CheckpointError, match="do not fit the weights"):
        convert_folder(open_folder(imported), tmp_path / "out")
    convert_folder(open_folder(imported), tmp_path / "out", max_shard_gb=5)
