import json
from pathlib import Path
from runpy import run_path

import pytest

from zaya_jax import cli, demo
from zaya_jax.config import freeze


@pytest.mark.parametrize(
    "text, python",
    [("x = 1\n", True), ("# nothing but words\n", False), ("def f(:\n", False), ("x\0", False)],
)
def test_what_counts_as_python(text, python):
    assert demo.is_python(text) is python


@pytest.mark.parametrize(
    "text, kept",
    [
        ("import os\n\ndef f():\n    pass\n\nclass A", "import os\n\ndef f():\n    pass\n\n"),
        ("def f(x):\n    y = [\n    1,\n]\n    retu", "def f(x):\n    y = [\n    1,\n]\n"),
        ("no line at all", ""),
    ],
)
def test_the_cut_end_of_a_sample_is_left_out(text, kept):
    assert demo.whole_statements(text) == kept


def test_the_demos_experiment_can_be_run():
    file = Path(demo.__file__).parents[1] / "experiments" / "zaya1_tiny.py"
    experiment = freeze(run_path(str(file))["get_config"]())
    assert experiment.name == "zaya1_tiny"
    assert experiment.model.eos_id == 1  # of a tokenizer trained here
    longest = demo.SAMPLE_TOKENS + max(map(len, demo.PROMPTS))
    assert experiment.model.context_length >= longest


def small_stages(folder: Path, corpus: Path) -> dict[str, Path]:
    """The demo's stages, on little data and in few steps."""
    chats = folder / "chats.jsonl"
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"What follows {i}?"},
                    {"role": "assistant", "content": f"{i + 1}."},
                ]
            }
        )
        for i in range(20)
    ]
    chats.write_text("\n".join(lines))
    sources = {"midtrain": corpus, "sft": chats}
    stages = {}
    for name, original in demo.STAGES.items():
        stages[name] = folder / f"{name}.py"
        stages[name].write_text(
            "from runpy import run_path\n\n"
            "def get_config():\n"
            f"    config = run_path({str(original)!r})['get_config']()\n"
            f"    config.data.source = {str(sources[name])!r}\n"
            "    config.data.heldout_fraction = 0.2\n"
            "    config.train.update(steps=2, batch_size=2, sequence_length=128, eval_every=2)\n"
            "    config.optim.warmup_steps = 1\n"
            "    return config\n"
        )
    return stages


def test_the_stages_are_those_of_the_experiments():
    assert list(demo.STAGES) == ["midtrain", "sft"]
    assert all(file.is_file() for file in demo.STAGES.values())


@pytest.mark.slow
def test_the_whole_demo_and_again(tmp_path, monkeypatch, capsys):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(12):
        lines = [f"def f{j}(x, y={i}):\n    return x * {j} + y\n" for j in range(40)]
        (corpus / f"m{i:02}.py").write_text("\n\n".join(lines))
    monkeypatch.setattr(demo, "SAMPLES", 3)
    monkeypatch.setattr(demo, "SAMPLE_TOKENS", 8)
    monkeypatch.setattr(demo, "ANSWER_TOKENS", 8)
    monkeypatch.setattr(demo, "STAGES", small_stages(tmp_path, corpus))
    small = {
        "model.vocab_size": 300, "model.hidden_size": 32, "model.expert_width": 32,
        "model.context_length": 64, "model.router.experts": 4, "model.router.width": 16,
        "data.source": corpus, "data.heldout_fraction": 0.2, "data.cache_dir": tmp_path / "cache",
        "train.steps": 4, "train.batch_size": 2, "train.sequence_length": 32,
        "optim.warmup_steps": 1,
    }  # fmt: skip
    record = tmp_path / "demo.json"
    run = tmp_path / "demo" / "run"
    command = [
        "demo",
        f"--workdir={run}",
        f"--json={record}",
        *(f"--config.{name}={value}" for name, value in small.items()),
    ]
    assert cli.main(command) == 0
    first = json.loads(record.read_text())
    assert first["steps"] == 4 and first["samples"] == 3
    assert {"ZAYA, before training", "ZAYA, trained"} < set(first["bits_per_byte"])
    assert Path(first["export"]) == tmp_path / "demo" / "hf"
    assert (tmp_path / "demo" / "hf" / "model.safetensors").is_file()
    assert list(first["stages"]) == [
        "midtrain from run: before", "midtrain from run: after",
        "sft from midtrain: before", "sft from midtrain: after",
    ]  # fmt: skip
    assert isinstance(first["answer"], str)
    page = Path(first["report"]).read_text()
    assert "valid Python" in page and "midtrain from run" in page
    says = json.loads((tmp_path / "demo" / "hf" / "config.json").read_text())
    assert says["max_position_embeddings"] == 1024  # the last stage's
    told = capsys.readouterr().out
    assert "Samples that are valid Python" in told and "generate --model=" in told
    assert "A question to the model of the last stage" in told

    # Again: nothing is trained, what it took is remembered, the demo's own export is replaced.
    assert cli.main(command) == 0
    again = json.loads(record.read_text())
    assert again["bits_per_byte"] == first["bits_per_byte"]
    assert again["stages"] == first["stages"] and again["answer"] == first["answer"]
    assert again["training_seconds"] == pytest.approx(first["training_seconds"], abs=3)
    assert again["training_seconds"] > 0.9 * first["training_seconds"] - 1

    # A folder that was named is not.
    capsys.readouterr()
    assert cli.main([*command, f"--out={tmp_path / 'demo' / 'hf'}"]) == 2
    assert "nothing in it is overwritten" in capsys.readouterr().err
