"""`launch.py generate` from the command line's point of view."""

import io
import json
from types import SimpleNamespace

import pytest

from zaya_jax import cli
from zaya_jax.hf import write_folder


@pytest.fixture(scope="module")
def model(network, tokenizer, tmp_path_factory):
    """A Hugging Face folder with a tokenizer."""
    loaded, folder = network(tokenizer=tokenizer), tmp_path_factory.mktemp("model")
    tokenizer.save(folder / "tokenizer")
    return write_folder(
        loaded.model,
        loaded.params,
        loaded.biases,
        folder / "out",
        tokenizer_dir=folder / "tokenizer",
    )


def run(model, *arguments: str) -> int:
    return cli.main(["generate", f"--model={model}", *arguments])


def test_streams_text_and_tells_what_it_took(model, tmp_path, capsys, monkeypatch):
    report = tmp_path / "out.json"
    stdin = SimpleNamespace(buffer=io.BytesIO(b"def f"))
    monkeypatch.setattr("sys.stdin", stdin)
    assert run(model, "--prompt=-", "--max_tokens=8", f"--json={report}") == 0
    shown = capsys.readouterr()
    written = json.loads(report.read_text())
    assert shown.out == written["completions"][0]["text"] + "\n"
    assert "tokens/s" in shown.err and "first token after" in shown.err
    assert len(written["completions"][0]["tokens"]) <= 8


def test_samples_differ_by_seed_and_repeat(model, tmp_path, capsys):
    file = tmp_path / "prompt.txt"
    file.write_text("def f")
    how = ("--temperature=1", "--top_p=0.9", "--samples=2", "--seed=5", "--max_tokens=8")
    arguments = (f"--prompt_file={file}", *how)
    assert run(model, *arguments) == 0
    first = capsys.readouterr().out
    assert run(model, *arguments) == 0
    assert capsys.readouterr().out == first
    _, *samples = first.split("--- sample")
    texts = [sample.partition("\n")[2] for sample in samples]
    assert len(texts) == 2 and texts[0] != texts[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give one of --prompt"),
        (("--prompt=x", "--prompt_file=y"), "give one of --prompt"),
        (("--prompt_file=nowhere.txt",), "nowhere.txt: No such file"),
        (("--prompt=x", "--temperature=-1"), "temperature = -1.0: expected"),
        (("--prompt=x", "--top_p=2"), "top_p = 2.0: expected"),
        (("--prompt=x", "--samples=0"), "--samples=0: expected at least 1"),
        (("--prompt=x", "--seed=-3"), "seed = -3: expected"),
        (("--prompt=x", "--stop="), "an empty string"),
        (("--prompt=x", "--max_tokens=0"), "max_tokens = 0"),
        ((f"--prompt={'f ' * 400}",), "model.context_length"),
        (("--prompt=caf\udce9",), "--prompt: not UTF-8 at byte 3"),
        (("--prompt=x", "--stop=\udcff"), "--stop: not UTF-8 at byte 0"),
    ],
)
def test_mistakes_are_told_in_one_line(model, arguments, message, capsys):
    assert run(model, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_prompt_that_is_not_utf8_is_located(model, tmp_path, capsys):
    file = tmp_path / "latin1.txt"
    file.write_bytes("caf\xe9".encode("latin-1"))
    assert run(model, f"--prompt_file={file}") == 2
    assert "not UTF-8 at byte 3" in capsys.readouterr().err
