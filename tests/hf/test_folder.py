"""Folders in every layout: the same weights, whichever way they went; bad ones refused."""

from __future__ import annotations

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from zaya_jax.config import Attention, Router
from zaya_jax.hf import (
    CheckpointError,
    convert_folder,
    import_folder,
    is_folder,
    open_folder,
    write_folder,
)
from zaya_jax.model import forms


def contents(folder):
    """Bytes of every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def tensors(folder):
    """Every tensor of a Hugging Face folder: dtype and bytes."""
    reader = open_folder(folder).reader
    return {n: (e.dtype, e.shape, reader.read(n).tobytes()) for n, e in reader.entries.items()}


def same_values(a, b):
    assert a.keys() == b.keys()
    for path, value in a.items():
        assert value.dtype == b[path].dtype, path
        assert np.array_equal(np.asarray(value), np.asarray(b[path])), path


@settings(max_examples=4)
@given(data=st.data())
def test_round_trips(data, small, spread, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("trip")
    layers = data.draw(st.sampled_from([1, 2, 4]), "layers")
    pattern = data.draw(st.sampled_from([("full",), ("full", "sliding")]), "pattern")
    heads, kv_heads = data.draw(st.sampled_from([(4, 2), (3, 1), (3, 3)]), "heads")
    model = small(
        num_layers=layers,
        attention=Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=4,
            conv_kernels=data.draw(st.sampled_from([(2, 2), (1, 3), (3, 1)]), "kernels"),
            pattern=pattern if layers > 1 else ("full",),
            window=3 if layers > 1 and len(pattern) > 1 else None,
        ),
        router=Router(experts=data.draw(st.integers(1, 3), "experts"), width=6),
        param_dtype=data.draw(st.sampled_from(["bfloat16", "float32"]), "dtype"),
        layers=data.draw(st.sampled_from(["scan", "unroll"]), "form"),
    )
    params, biases = spread(model)
    shard = data.draw(st.sampled_from([None, 1e-5]), "shard")
    kinds = ("native", "legacy")
    for kind in kinds:
        write_folder(model, params, biases, tmp / kind, layout=kind, max_shard_gb=shard)
    _, expected, expected_biases = forms.convert(model, params, biases, "unroll")
    for kind, other in (kinds, kinds[::-1]):
        imported = import_folder(tmp / kind, tmp / f"imported-{kind}")
        # In memory again: what was written.
        for folder in (open_folder(tmp / kind), imported):
            found, found_biases = folder.load()
            same_values(found, expected)
            same_values(found_biases, expected_biases)
        # The same layout again: the same bytes.
        back = convert_folder(imported, tmp / f"back-{kind}")
        assert contents(back) == contents(tmp / kind)
        # The other layout: the same tensors, dtypes included.
        across = convert_folder(imported, tmp / f"across-{kind}", layout=other)
        assert tensors(across) == tensors(tmp / other)
    model = dataclasses.replace(model, layers="unroll")
    for folder in (open_folder(tmp / "native"), open_folder(tmp / "imported-legacy")):
        dtypes = {"param_dtype": model.param_dtype, "activation_dtype": model.param_dtype}
        assert folder.model == dataclasses.replace(model, **dtypes)


def test_dtypes_are_kept_tensor_by_tensor(native, tmp_path):
    values = load_file(native / "model.safetensors")
    values["model.norm.weight"] = values["model.norm.weight"].astype(np.float32)
    name = "model.layers.1.mlp.gate.balancing_biases"
    values[name] = values[name].astype(ml_dtypes.bfloat16)
    save_file(values, native / "model.safetensors", metadata={"format": "pt", "by": "somebody"})
    imported = import_folder(native, tmp_path / "i")
    assert imported.dtype("model.norm.weight") == np.float32
    assert imported.dtype(name) == ml_dtypes.bfloat16
    assert contents(convert_folder(imported, tmp_path / "back")) == contents(native)
    legacy = open_folder(convert_folder(imported, tmp_path / "legacy", layout="legacy"))
    assert legacy.reader.entries["model.final_norm.weight"].dtype == np.float32
    params, biases = imported.load()
    assert {str(v.dtype) for v in params.values()} == {"bfloat16"}
    assert {str(v.dtype) for v in biases.values()} == {"float32"}


def test_files_of_any_writer_come_back_byte_for_byte(legacy, tmp_path):
    # An order, a sharding and a metadata that our writer would not choose.
    values = {}
    for file in legacy.glob("*.safetensors"):
        values |= load_file(file)
        file.unlink()
    names = sorted(values, reverse=True)
    half = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, part in half.items():
        save_file({n: values[n] for n in part}, legacy / file, metadata={"made": "elsewhere"})
    index = {"weight_map": {n: file for file, part in half.items() for n in part}}
    (legacy / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((legacy / "config.json").read_text())
    (legacy / "config.json").write_text(json.dumps(config | {"a key of theirs": [1, 2]}))
    (legacy / "tokenizer.json").write_text('{"not": "looked into"}')
    import_folder(legacy, tmp_path / "i")
    back = convert_folder(open_folder(tmp_path / "i"), tmp_path / "back")
    assert contents(back) == contents(legacy)
    assert open_folder(tmp_path / "i").tokenizer_dir == tmp_path / "i" / "tokenizer"
    # Sharded anew: other files, the same config.
    again = convert_folder(open_folder(tmp_path / "i"), tmp_path / "again", max_shard_gb=1)
    assert (again / "config.json").read_bytes() == (legacy / "config.json").read_bytes()
    assert not (again / "model.safetensors.index.json").exists()
    assert tensors(again) == tensors(legacy)


def test_list_style_configs_open(legacy):
    config = json.loads((legacy / "config.json").read_text())
    for key in ("num_query_groups", "ffn_hidden_size", "zaya_mlp_expansion", "swa_layers"):
        del config[key]
    lists = {
        "zaya_layers": ["a", 3] * 4,
        "cca_num_q_heads": [4, 0] * 4,
        "num_query_groups_list": [2, 0] * 4,
        "ffn_hidden_size_list": [0, 40] * 4,
        "zaya_mlp_expansion": [0, 12] * 4,
        "num_attention_heads": 8,
        "residual_in_fp32": False,
    }
    (legacy / "config.json").write_text(json.dumps(config | lists))
    folder = open_folder(legacy)
    assert folder.layout == "legacy"
    assert folder.model.attention.heads == 4 and not folder.model.residual_in_fp32


def test_a_native_config_beside_legacy_tensors(legacy, native):
    # The tensors decide how they are read, the config what they mean.
    (legacy / "config.json").write_bytes((native / "config.json").read_bytes())
    same_values(open_folder(legacy).load()[0], open_folder(native).load()[0])


def test_loading_casts(native):
    params, biases = open_folder(native).load("float32")
    assert {str(v.dtype) for v in (*params.values(), *biases.values())} == {"float32"}


# --- Bad input ----------------------------------------------------------------------------------


def refused(path, *words, **options):
    with pytest.raises(CheckpointError) as error:
        open_folder(path, **options)
    for word in words:
        assert word in str(error.value)


def test_missing_extra_and_misshaped_tensors_are_listed_at_once(native):
    file = native / "model.safetensors"
    values = load_file(file)
    del values["model.norm.weight"], values["model.layers.2.self_attn.qk_norm.temp"]
    values["model.layers.0.what"] = np.zeros(3, np.float32)
    values["lm_head.weight"] = np.zeros((96, 24), np.float32)
    values["model.embed_tokens.weight"] = values["model.embed_tokens.weight"][:-1]
    values["model.layers.0.mlp.experts.down_proj"] = np.zeros((3, 24, 20), np.int8)
    save_file(values, file)
    refused(
        native,
        "2 missing:\n    model.norm.weight\n    model.layers.2.self_attn.qk_norm.temp",
        "2 not part of the model",
        "model.layers.0.what",
        "lm_head.weight",
        "1 mis-shaped:\n    model.embed_tokens.weight [95, 24], expected [96, 24]",
        "1 quantised",
        "model.layers.0.mlp.experts.down_proj (int8)",
    )


def test_experts_in_different_dtypes(legacy):
    file = sorted(legacy.glob("*.safetensors"))[-1]
    values = load_file(file)
    name = next(n for n in values if "local_experts.1" in n)
    values[name] = values[name].astype(np.float32)
    save_file(values, file)
    refused(legacy, "different dtypes")


def test_truncated_weights(native):
    file = native / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    refused(native, "model.safetensors", "truncated")


def test_a_layout_is_not_forced_upon_other_names(native, legacy, tmp_path):
    refused(native, "--layout=legacy", "native", layout="legacy")
    refused(legacy, "--layout=native", "legacy", layout="native")
    assert open_folder(legacy, "legacy").layout == "legacy"
    import_folder(legacy, tmp_path / "i")
    refused(tmp_path / "i", "imported already", layout="legacy")


def test_folders_that_are_none(tmp_path, native):
    refused(tmp_path / "no", "no such folder")
    refused("Zyphra/ZAYA1-8B", "hf download Zyphra/ZAYA1-8B")
    refused(tmp_path, "no weights")
    refused(native / "config.json", "no such folder")
    other = tmp_path / "llama"
    other.mkdir()
    save_file({"model.layers.0.mlp.up_proj.weight": np.zeros(1)}, other / "model.safetensors")
    refused(other, "not a ZAYA1 checkpoint", "up_proj")
    save_file({"vision_tower.x": np.zeros(1)}, other / "model.safetensors")
    refused(other, "ZAYA1-VL is not supported")
    assert is_folder(native) and not is_folder(tmp_path) and not is_folder(native / "x")


def test_pickles_are_never_opened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    refused(tmp_path, "pickled", "never opened")


def test_configs_that_are_missing_or_broken(native):
    (native / "config.json").write_text("{")
    refused(native, "config.json", "not JSON")
    (native / "config.json").unlink()
    refused(native, "config.json", "cannot be read")


def test_nan_weights_are_warned_of_by_name(native, tmp_path):
    file = native / "model.safetensors"
    values = load_file(file)
    values["model.norm.weight"][3] = np.nan
    values["model.layers.1.mlp.experts.down_proj"][2, 0, 0] = -np.inf
    save_file(values, file)
    names = "in 2 tensors: .*model.norm.weight"
    with pytest.warns(UserWarning, match="in 2 tensors: .*experts.down_proj"):
        params, _ = open_folder(native).load()
    assert np.isnan(np.asarray(params["final_norm"], np.float32)).sum() == 1
    with pytest.warns(UserWarning, match="in 2 tensors"):
        import_folder(native, tmp_path / "i")
    with pytest.warns(UserWarning, match=names.split(":")[0]):
        convert_folder(open_folder(native), tmp_path / "e")


def test_imported_folders_are_checked_too(native, tmp_path):
    imported = import_folder(native, tmp_path / "i").path
    with pytest.raises(CheckpointError, match="imported already"):
        import_folder(imported, tmp_path / "j")
    manifest = imported / "zaya.json"
    good = json.loads(manifest.read_text())
    for change, word in (
        ({"format": 99}, "import the folder anew"),
        ({"origin_layout": "x"}, "origin_layout is 'x'"),
        ({"origin_layout": ["native"]}, "origin_layout is ['native']"),
        ({"model": {"hidden_sise": 1}}, "hidden_sise"),
    ):
        manifest.write_text(json.dumps(good | change))
        refused(imported, "zaya.json", word)
    manifest.write_text(json.dumps(good))
    (imported / "weights.safetensors").unlink()
    refused(imported, "131 missing")
