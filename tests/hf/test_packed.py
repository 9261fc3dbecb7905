"""Experts as published in FP8 and MXFP4: read as others read them, served as they are."""

import json
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pallas_kernels.quantized import Quantized
from zaya_jax import load
from zaya_jax.errors import UserError
from zaya_jax.hf import CheckpointError, convert_folder, import_folder, open_folder, write_folder
from zaya_jax.hf.safetensors_io import Reader
from zaya_jax.infer import quantize
from zaya_jax.infer.quantize import Scheme
from zaya_jax.model import functional

WIDTHS = dict(hidden_size=32, expert_width=64, num_layers=2)


def fp8(weights):
    """compressed-tensors, per channel: values and scales of [E, out, in]."""
    scales = np.abs(weights).max(-1, keepdims=True) / 448
    values = (weights / scales).astype(ml_dtypes.float8_e4m3fn)
    return values, scales.astype(ml_dtypes.bfloat16)


def mxfp4(weights, seed=0):
    """OCP MX: random codes are as good as any; scales near those of the weights."""
    draw = np.random.default_rng(seed)
    experts, rows, width = weights.shape
    values = draw.integers(0, 256, (experts, rows, width // 2), np.uint8)
    scales = draw.integers(118, 127, (experts, rows, width // 32), np.uint8)
    return values, scales


FORMS = {
    "fp8": (fp8, "", ".weight_scale", "compressed-tensors"),
    "mxfp4": (mxfp4, "", ".weight_scale", "compressed-tensors"),
    "packed": (mxfp4, ".weight_packed", ".weight_scale", "compressed-tensors"),
    "blocks": (mxfp4, "_blocks", "_scales", "mxfp4"),
}


@pytest.fixture(scope="module")
def plain(small, spread, tmp_path_factory):
    """A native folder in bfloat16."""
    model = small(param_dtype="bfloat16", **WIDTHS)
    return write_folder(model, *spread(model), tmp_path_factory.mktemp("plain") / "native")


@pytest.fixture
def published(plain, tmp_path):
    """Makes a folder with its experts in one of `FORMS`; returns it, and what it holds of them."""

    def make(form):
        quantize_, values_suffix, scales_suffix, method = FORMS[form]
        folder, held = tmp_path / form, {}
        folder.mkdir()
        tensors = load_file(plain / "model.safetensors")
        for name in [n for n in tensors if ".mlp.experts." in n]:
            values, scales = quantize_(tensors.pop(name).astype(np.float32))
            held[name] = (values, scales)
            if form == "blocks":
                values = values.reshape(*scales.shape, 16)
            tensors[name + values_suffix], tensors[name + scales_suffix] = values, scales
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((plain / "config.json").read_text())
        config["quantization_config"] = {"quant_method": method}
        (folder / "config.json").write_text(json.dumps(config))
        return folder, held

    return make


def as_others_read(form, values, scales):
    """[E, out, in] float32, by torch's float8 and by transformers' MXFP4."""
    torch = pytest.importorskip("torch")
    if form == "fp8":
        codes = torch.from_numpy(values.view(np.uint8)).view(torch.float8_e4m3fn)
        factors = torch.from_numpy(scales.view(np.int16)).view(torch.bfloat16)
        return (codes.float() * factors.float()).numpy()
    integration = pytest.importorskip("transformers.integrations.mxfp4")
    blocks = torch.from_numpy(values.reshape(*scales.shape, 16))
    found = integration.convert_moe_packed_tensors(
        blocks, torch.from_numpy(scales), dtype=torch.float32
    )
    return found.numpy().swapaxes(1, 2)


@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_that_others_read(published, form):
    folder, held = published(form)
    opened = open_folder(folder)
    kept = opened.load(store=quantize.keep)[0]
    meant = opened.load("float32")[0]
    stacks = {path: value for path, value in kept.items() if isinstance(value, Quantized)}
    assert len(stacks) == len(held) == 4
    addresses = {d.full_name(d.layers): p for p, d in functional.declarations(opened.model).items()}
    for name, (values, scales) in held.items():
        expected = as_others_read(form, values, scales).swapaxes(1, 2)
        stack = stacks[addresses[name]]
        stack.check(name)
        assert stack.kind == ("fp8" if form == "fp8" else "fp4")
        np.testing.assert_array_equal(np.asarray(stack.dequantize()), expected)
        rounded = expected.astype(ml_dtypes.bfloat16).astype(np.float32)
        np.testing.assert_array_equal(np.asarray(meant[addresses[name]]), rounded)
        if form != "fp8":  # bfloat16 holds every number of MXFP4
            np.testing.assert_array_equal(rounded, expected)


@pytest.mark.parametrize("form", ["fp8", "mxfp4"])
def test_the_network_is_that_of_the_weights_that_are_meant(published, form):
    folder, _ = published(form)
    kept = quantize.load(folder, param_dtype="float32", activation_dtype="float32")
    expected = open_folder(folder).load("float32")[0]

    @jax.jit
    def hidden(params):
        return functional.merge(kept.model, params, kept.biases)(jnp.arange(3, 15)[None]).hidden

    found = np.asarray(hidden(kept.params), np.float64)
    # The plain weights are rounded to bfloat16, which no number of MXFP4 notices.
    bound = 2e-2 if form == "fp8" else 1e-4
    assert np.abs(found - np.asarray(hidden(expected))).max() < bound * np.abs(found).max()
    assert quantize.kinds(kept.params) == {"fp8" if form == "fp8" else "fp4"}


def test_an_import_writes_what_is_meant_and_export_goes_on_from_it(published, tmp_path):
    folder, held = published("mxfp4")
    imported = import_folder(folder, tmp_path / "imported")
    out = convert_folder(imported, tmp_path / "out")
    again = convert_folder(open_folder(folder), tmp_path / "again")
    tensors = load_file(out / "model.safetensors")
    for name, (values, scales) in held.items():
        np.testing.assert_array_equal(
            tensors[name].astype(np.float32), as_others_read("mxfp4", values, scales)
        )
    for written in (out, again):
        assert "quantization_config" not in json.loads((written / "config.json").read_text())
        assert not open_folder(written).packed


def test_what_is_quantized_is_neither_trained_nor_quantized_again(published):
    folder, _ = published("fp8")
    with pytest.raises(UserError, match=r"quantized \(fp8\): they can be served, not trained"):
        load.load(folder)
    with pytest.raises(UserError, match="these weights are fp8 as they were published"):
        quantize.load(folder, Scheme("int8"))


def change(folder, edit):
    file = folder / "model.safetensors"
    reader = Reader([file])  # numpy itself knows no float8
    tensors = {name: np.array(reader.read(name)) for name in reader.entries}
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})


STACK = "model.layers.0.mlp.experts.down_proj"


@pytest.mark.parametrize(
    ("form", "edit", "message"),
    [
        ("fp8", lambda t: t.update({f"{STACK}.weight_scale": t[f"{STACK}.weight_scale"][:, 1:]}),
         r"weight_scale \[3, 31, 1\], expected \[3, 32, 1\]"),
        ("fp8", lambda t: t.pop(f"{STACK}.weight_scale"), "down_proj (float8_e4m3fn)"),
        ("fp8", lambda t: t.update({f"{STACK}.weight_scale": np.ones((3, 32, 1), np.int8)}),
         "weight_scale in int8, expected floating point"),
        ("mxfp4", lambda t: t.update({STACK: t[STACK][:, :, 1:]}),
         r"down_proj \[3, 32, 31\], expected \[3, 32, 32\]"),
        ("mxfp4", lambda t: t.update({f"{STACK}.weight_scale": np.ones((3, 32, 2), np.int8)}),
         "weight_scale in int8, expected uint8 (E8M0)"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_as_published_are_named(published, form, edit, message):
    folder, _ = published(form)
    change(folder, edit)
    with pytest.raises(CheckpointError) as error:
        open_folder(folder)
    assert re.search(message, str(error.value)) or message in str(error.value)


@pytest.mark.parametrize(("form", "code"), [("fp8", 0x7F), ("mxfp4", 0xFF)])
def test_what_is_no_number_is_warned_of(published, form, code):
    folder, _ = published(form)

    def spoil(tensors):
        name = STACK if form == "fp8" else f"{STACK}.weight_scale"
        tensors[name].view(np.uint8)[1, 2, 0] = code

    change(folder, spoil)
    with pytest.warns(UserWarning, match=rf"NaN or infinity in 1 tensors: {STACK}"):
        open_folder(folder).load(store=quantize.keep)


def test_an_unknown_method_is_refused(plain, tmp_path):
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((plain / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="quant_method = 'gptq': known: compressed-tensors"):
        open_folder(tmp_path)
