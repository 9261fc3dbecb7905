"""Adapters in PEFT's layout: peft loads ours onto transformers' Zaya, and we load peft's."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from zaya_jax import lora
from zaya_jax.config import Attention, Lora, Router
from zaya_jax.hf import CheckpointError, peft, write_folder
from zaya_jax.model import functional

ALL = ("q", "k", "v", "o", "experts")


def draw(model, section: Lora, seed: int = 0):
    """Adapters that move every target."""
    random = np.random.default_rng(seed)
    return {
        path: jax.numpy.asarray(0.3 * random.standard_normal(d.shape), d.dtype)
        for path, d in lora.declarations(model, section).items()
    }


def logits(model, params, biases, ids) -> np.ndarray:
    @jax.jit
    def run(params, biases, tokens):
        network = functional.merge(model, params, biases)
        return network.logits(network(tokens).hidden)

    return np.asarray(run(params, biases, ids))


@pytest.fixture
def oracle(tmp_path):
    """Loads an adapter folder over a base folder with peft; gives a function to the logits."""
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    def load(base, adapter):
        network = AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
        wrapped = library.PeftModel.from_pretrained(network, adapter).eval()

        def run(ids):
            with torch.no_grad():
                return wrapped(torch.tensor(ids)).logits.numpy()

        return wrapped, run

    return load


@pytest.mark.parametrize(
    ("section", "layers", "experts"),
    [
        (Lora(rank=3, alpha=6.0, targets=ALL), "scan", 3),
        (Lora(rank=2, alpha=1.5, targets=("experts",)), "unroll", 1),
        (Lora(rank=4, targets=("v", "o")), "unroll", 3),
    ],
)
def test_peft_gives_our_logits(oracle, small, spread, tmp_path, section, layers, experts):
    model = small(layers=layers, router=Router(experts=experts, width=12))
    params, biases = spread(model)
    adapters = draw(model, section)
    base = write_folder(model, params, biases, tmp_path / "base")
    out = peft.write_adapter(model, section, adapters, tmp_path / "adapter", base=str(base))
    ids = np.random.default_rng(0).integers(96, size=(2, 33))
    merged = lora.merge(model, section, params, adapters)
    ours = logits(model, merged, biases, ids)

    wrapped, run = oracle(base, out)
    theirs = run(ids)
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    without = logits(model, params, biases, ids)
    assert np.abs(without - theirs).max() > 0.01 * np.abs(theirs).max()

    # The same set of tensors as peft itself would have written, and back again.
    wrapped.save_pretrained(tmp_path / "saved")
    read, back = peft.read_adapter(tmp_path / "saved", model)
    assert (read.rank, read.alpha, set(read.targets)) == (
        section.rank, section.alpha, set(section.targets),
    )  # fmt: skip
    assert back.keys() == adapters.keys()
    assert all((back[path] == adapters[path]).all() for path in adapters)


def test_the_merged_export_gives_the_adapters_logits(oracle, small, spread, tmp_path):
    transformers = pytest.importorskip("transformers")
    section, model = Lora(rank=2, targets=ALL), small()
    params, biases = spread(model)
    adapters = draw(model, section)
    ids = np.random.default_rng(0).integers(96, size=(1, 20))
    base = write_folder(model, params, biases, tmp_path / "base")
    out = peft.write_adapter(model, section, adapters, tmp_path / "adapter")
    _, run = oracle(base, out)
    merged = lora.merge(model, section, params, adapters)
    folder = write_folder(model, merged, biases, tmp_path / "merged")
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    import torch

    theirs = whole(torch.tensor(ids)).logits.detach().numpy()
    assert np.abs(run(ids) - theirs).max() <= 1e-5 * np.abs(theirs).max()


def test_what_is_written(small, tmp_path):
    model, section = small(), Lora(rank=2, alpha=16.0, targets=("q", "experts"))
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer.json").write_text("{}")
    out = peft.write_adapter(
        model, section, draw(model, section), tmp_path / "out", base="Zyphra/ZAYA1-8B",
        tokenizer_dir=tokenizer,
    )  # fmt: skip
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "tokenizer.json",
    }  # fmt: skip
    settings = json.loads((out / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "Zyphra/ZAYA1-8B"
    assert settings["target_modules"] == ["q_proj"]
    assert (settings["r"], settings["lora_alpha"]) == (2, 16)
    with pytest.raises(CheckpointError, match="--overwrite"):
        peft.write_adapter(model, section, draw(model, section), out)
    peft.write_adapter(model, section, draw(model, section), out, overwrite=True)


@pytest.fixture
def written(small, tmp_path):
    model, section = small(), Lora(rank=2, targets=("q", "experts"))
    return model, peft.write_adapter(model, section, draw(model, section), tmp_path / "written")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"r": 0}, "r 0: expected LORA and a rank"),
        ({"use_dora": True}, "use_dora = True"),
        ({"use_rslora": True}, "use_rslora = True"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"r": 3}, r"lora_A.weight: \(6, 24\), expected \(9, 24\)"),
    ],
)
def test_an_adapter_that_is_more_than_plain_is_refused(written, changes, words):
    model, folder = written
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(CheckpointError, match=words):
        peft.read_adapter(folder, model)


def test_an_adapter_of_another_model_is_refused_by_tensor(written, small):
    _, folder = written
    with pytest.raises(CheckpointError, match=r"q_proj.lora_A.weight: \(2, 24\), expected \(2, 32"):
        peft.read_adapter(folder, small(hidden_size=32))
    with pytest.raises(CheckpointError, match=r"layers.2.*: \(.*\), expected no such tensor"):
        peft.read_adapter(folder, small(num_layers=2))


def test_settings_that_cannot_be_read_are_named(written):
    model, folder = written
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"adapter_config.json: not the settings"):
        peft.read_adapter(folder, model)


def test_adapters_of_a_base_that_transformers_lacks_are_refused(small, tmp_path):
    model = small(attention=Attention("mla", heads=4, head_dim=8, kv_rank=6))
    section = Lora(rank=2, targets=("k",))
    with pytest.raises(CheckpointError, match="model.attention.kind = 'mla': only 'cca' exists"):
        peft.write_adapter(model, section, draw(model, section), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
