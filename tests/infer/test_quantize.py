"""Quantized networks: what is stored, what they say, what memory it takes, what is refused."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.quantized import Quantized
from zaya_jax import cli, load
from zaya_jax.errors import UserError
from zaya_jax.hf import write_folder
from zaya_jax.infer import quantize
from zaya_jax.infer.quantize import Scheme
from zaya_jax.model import functional

LENGTH = 24


@pytest.fixture(scope="module")
def loaded(network, tokenizer):
    return network(tokenizer=tokenizer)


@pytest.fixture(scope="module")
def folder(loaded, tokenizer, tmp_path_factory):
    """The same network as a Hugging Face folder."""
    place = tmp_path_factory.mktemp("model")
    tokenizer.save(place / "tokenizer")
    parts = (loaded.model, loaded.params, loaded.biases, place / "out")
    return write_folder(*parts, tokenizer_dir=place / "tokenizer")


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, biases, tokens):
    decoder = functional.merge(model, params, biases)
    out = jax.nn.log_softmax(decoder.logits(decoder(tokens).hidden)[0])
    return jnp.take_along_axis(out[:-1], tokens[0, 1:, None], axis=-1)[:, 0]


def logprobs(loaded, tokens):
    """Of every token but the first, by the whole network."""
    row = np.zeros((1, LENGTH), np.int32)
    row[0, : len(tokens)] = tokens
    found = run(loaded.model, loaded.params, loaded.biases, row)
    return np.asarray(found)[: len(tokens) - 1]


def meant(loaded):
    """The same network with every weight written out."""
    declared = functional.declarations(loaded.model)
    params = {
        name: value.dequantize().reshape(declared[name].shape)
        if isinstance(value, Quantized)
        else value
        for name, value in loaded.params.items()
    }
    return dataclasses.replace(loaded, params=params)


def test_what_is_quantized_and_what_is_not(loaded):
    experts = quantize.quantize(loaded, Scheme("int4", group=8))
    kinds = {n: v.kind for n, v in experts.params.items() if isinstance(v, Quantized)}
    assert set(kinds.values()) == {"int4"} and all(".experts." in name for name in kinds)
    assert len(kinds) == 2 * loaded.model.num_layers

    all_of_it = quantize.quantize(loaded, Scheme("int4", "all")).params
    kinds = {n: v.kind for n, v in all_of_it.items() if isinstance(v, Quantized)}
    assert kinds.pop("embedding") == "int8"  # it is the head, too
    assert set(kinds.values()) == {"int4"}
    plain = {name.split(".", 2)[-1] for name in all_of_it if name not in kinds}
    for kept in ("attention.conv_grouped", "input_norm", "attention_residual.mixer_scale"):
        assert kept in plain
    assert not any("router" in name for name in kinds)
    assert {n.rsplit(".", 1)[-1] for n in kinds} >= {"q", "k", "output", "gate_up", "down"}
    assert 0 < quantize.nbytes(all_of_it.values()) < quantize.nbytes(experts.params.values())
    # Nothing of the original was touched.
    assert not quantize.kinds(loaded.params)


@pytest.mark.parametrize("scheme", [Scheme("int8", "all"), Scheme("int4", "all", group=8)])
def test_the_network_computes_with_the_weights_that_are_meant(loaded, scheme):
    tokens = np.random.default_rng(0).integers(3, 290, LENGTH)
    small = quantize.quantize(loaded, scheme)
    expected = logprobs(meant(small), tokens)
    np.testing.assert_allclose(logprobs(small, tokens), expected, atol=2e-4)
    off = np.abs(expected - logprobs(loaded, tokens)).mean()
    assert 0 < off < (0.5 if scheme.kind == "int8" else 4)


def test_each_weight_lets_go_of_what_it_was_made_from(folder):
    """No second set of weights: beside what is quantized already, one matrix at most."""
    scheme, held = Scheme("int8", "all"), []

    def live() -> int:
        return sum(x.nbytes for x in jax.live_arrays())

    def store(declaration, value):
        found = scheme.store(declaration, value)
        jax.block_until_ready(found)
        held.append(live() - before)
        return found

    before = 0
    load.load(folder, store=store)  # constants of compiled programs are then there
    held.clear()
    before = live()
    small = load.load(folder, store=store)
    sizes = [4 * np.prod(d.shape) for d in functional.declarations(small.model).values()]
    done, slack = quantize.nbytes(small.params.values()), 4096
    assert max(held) <= done + max(sizes) + slack < sum(sizes)


def test_a_folder_is_quantized_as_it_is_read(folder, loaded):
    scheme = Scheme("int4", "all", group=8)
    read = quantize.load(folder, scheme)
    expected = quantize.quantize(loaded, scheme)
    assert jax.tree.structure(read.params) == jax.tree.structure(expected.params)
    for a, b in zip(*map(jax.tree.leaves, (read.params, expected.params)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nf4",), "quantize = 'nf4': accepted: int8, int4, fp8, fp4"),
        (("int8", "most"), "quantize_what = 'most': accepted: experts, all"),
    ],
)
def test_an_unknown_scheme_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Scheme(*arguments)


def test_a_group_that_divides_no_matrix_is_refused_before_anything_is_read(folder, monkeypatch):
    monkeypatch.setattr(load, "load", None)
    with pytest.raises(UserError, match=r"experts\.\w+ has \d+ rows; accepted: even numbers that"):
        quantize.load(folder, Scheme("int4", group=7))
    with pytest.raises(UserError, match="quantize_group = 5"):
        quantize.load(folder, Scheme("int8", group=5))


def test_weights_are_quantized_once(loaded):
    small = quantize.quantize(loaded, Scheme("int8"))
    with pytest.raises(UserError, match="these weights are int8 as they were published"):
        quantize.quantize(small, Scheme("int4"))


def test_nothing_is_trained_through_quantized_weights(loaded):
    small = quantize.quantize(loaded, Scheme("int8"))

    def loss(scale):
        params = small.params | {"final_norm": scale * small.params["final_norm"]}
        params["input_scale"] = scale * params["input_scale"]
        decoder = functional.merge(small.model, params, small.biases)
        return decoder(jnp.ones((1, 4), jnp.int32)).hidden.sum()

    with pytest.raises(ValueError, match="nothing is differentiated through quantized weights"):
        jax.eval_shape(jax.grad(loss), 1.0)


def test_generate_from_the_command_line(folder, loaded, tokenizer, tmp_path, capsys):
    """Tokens through the cache: scored as the whole network does, and likely without int8 too."""
    report = tmp_path / "out.json"
    call = ("generate", f"--model={folder}", "--prompt=def f", "--max_tokens=12")
    assert cli.main([*call, "--quantize=int8", "--quantize_what=all", f"--json={report}"]) == 0
    assert "weights by kind: int8" in capsys.readouterr().err
    done = json.loads(report.read_text())["completions"][0]
    prompt = tokenizer.encode("def f")
    tokens, new = np.array([*prompt, *done["tokens"]]), slice(len(prompt) - 1, None)
    small = quantize.quantize(loaded, Scheme("int8", "all"))
    np.testing.assert_allclose(logprobs(small, tokens)[new], done["logprobs"], atol=1e-3)
    assert np.abs(logprobs(loaded, tokens)[new] - done["logprobs"]).mean() < 0.5
    for wrong, message in {
        "--quantize=int3": "quantize = 'int3': accepted",
        "--quantize_what=all": "--quantize_what goes with --quantize=",
        "--quantize=int8 --quantize_group=7": "quantize_group = 7",
    }.items():
        assert cli.main([*call, *wrong.split()]) == 2
        assert message in capsys.readouterr().err
