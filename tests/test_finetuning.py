"""From a Hugging Face folder and a chat JSONL to an exported model, by the two commands."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.oracles import tiny_model, torch, torch_model
from zaya_jax import cli, load
from zaya_jax.data import chat
from zaya_jax.data.tokenizer import train_bpe

SFT = "--config=experiments/stages/sft_lora.py"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder as transformers writes it: random weights and a tokenizer that knows ChatML."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("base")
    texts = ["What is the colour of the sky? The sky is blue.\n"] * 4
    bpe = train_bpe(texts, 300, special_tokens=chat.SPECIAL_TOKENS)
    bpe.save(folder / "bpe")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "bpe" / "tokenizer.json"),
        eos_token="<|im_end|>",
        bos_token="<bos>",
        pad_token="<pad>",
    )
    tokenizer.save_pretrained(folder / "hf")
    section = tiny_model()
    network = torch_model(section, seed=0)
    for layer in network.model.layers:
        layer.mlp.gate.balancing_biases[-1] = -1  # what from_pretrained sets it to
    network.resize_token_embeddings(bpe.vocab_size)
    network.config.eos_token_id = tokenizer.eos_token_id
    network.config.bos_token_id = tokenizer.bos_token_id
    network.config.pad_token_id = tokenizer.pad_token_id
    network.save_pretrained(folder / "hf")
    return folder / "hf"


@pytest.fixture(scope="module")
def conversations(tmp_path_factory):
    """A user's chat.jsonl."""
    file = tmp_path_factory.mktemp("chat") / "chat.jsonl"
    colours = ("sky", "blue"), ("grass", "green"), ("snow", "white"), ("coal", "black")
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"What is the colour of the {thing}? ({i})"},
                {
                    "role": "assistant",
                    "content": f"<think>\nOf {thing}, then.\n</think>\n\nIt is {colour}.",
                },
            ]
        }
        for i in range(10)
        for thing, colour in colours
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def train(base, conversations, folder, *options) -> None:
    small = {
        "train.init_from": base, "data.source": conversations, "train.steps": 3,
        "train.batch_size": 2, "train.sequence_length": 128, "train.eval_every": 3,
        "optim.warmup_steps": 1, "optim.learning_rate": 1e-2, "lora.rank": 3,
        "data.heldout_fraction": 0.2, "data.cache_dir": folder / "cache",
    }  # fmt: skip
    settings = [f"--config.{name}={value}" for name, value in small.items()]
    assert cli.main(["train", SFT, f"--workdir={folder / 'run'}", *settings, *options]) == 0


def logits_of(network, ids) -> np.ndarray:
    with torch.no_grad():
        return network.eval()(torch.tensor(ids)).logits.double().numpy()


@pytest.mark.slow
def test_adapters_of_all_targets_reach_transformers_and_peft(base, conversations, tmp_path, capsys):
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    train(base, conversations, tmp_path, '--config.lora.targets=("q","k","v","o","experts")')
    run = tmp_path / "run"
    says = json.loads((run / "config.json").read_text())
    assert says["model"]["hidden_size"] == 48 and None not in says["model"]["router"].values()
    assert "biases stay as they are" in capsys.readouterr().err

    merged, adapter = tmp_path / "merged", tmp_path / "adapter"
    assert cli.main(["export", f"--model={run}", f"--out={merged}"]) == 0
    assert cli.main(["export", f"--model={run}", f"--out={adapter}", "--adapter"]) == 0
    capsys.readouterr()

    ids = np.random.default_rng(0).integers(3, 260, size=(2, 40))
    eager = {"attn_implementation": "eager", "dtype": torch.float32}
    auto = transformers.AutoModelForCausalLM
    start = logits_of(auto.from_pretrained(base, **eager), ids)
    whole = logits_of(auto.from_pretrained(merged, **eager), ids)
    # The adapter's settings name the base themselves.
    wrapped = peft.AutoPeftModelForCausalLM.from_pretrained(adapter, **eager)
    scale = np.abs(whole).max()
    assert np.abs(logits_of(wrapped, ids) - whole).max() <= 1e-5 * scale
    assert np.abs(start - whole).max() > 1e-3 * scale

    from zaya_jax.model import functional

    ours = load.load(run)
    network = functional.merge(ours.model, ours.params, ours.biases)
    mine = np.asarray(network.logits(network(ids).hidden), np.float64)
    assert np.abs(mine - whole).max() <= 1e-5 * scale
    tokenizer = transformers.AutoTokenizer.from_pretrained(merged)
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.slow
def test_full_finetuning_is_the_same_command(base, conversations, tmp_path, capsys):
    transformers = pytest.importorskip("transformers")
    train(base, conversations, tmp_path, "--config.lora.rank=0")
    run, out = tmp_path / "run", tmp_path / "out"
    assert cli.main(["export", f"--model={run}", f"--out={out}"]) == 0
    transformers.AutoModelForCausalLM.from_pretrained(out)
    before, after = load.load(base), load.load(run)
    same = [path for path in before.params if (before.params[path] == after.params[path]).all()]
    assert not same
    capsys.readouterr()
    assert cli.main(["export", f"--model={run}", f"--out={tmp_path / 'a'}", "--adapter"]) == 2
    assert "trained all parameters: lora.rank = 0" in capsys.readouterr().err


def test_adapters_are_only_of_runs(base, tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    assert cli.main(["export", f"--model={base}", out, "--adapter"]) == 2
    assert "is no run, and has no adapters" in capsys.readouterr().err


def test_the_section_comes_from_the_folder(base):
    section = load.model_of(base)
    assert (section.vocab_size, section.num_layers, section.expert_width) == (292, 3, 40)
    assert section.eos_id == load.load(base).require_tokenizer().eos_id
