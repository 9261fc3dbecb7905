import json

import pytest

from zaya_jax import cli

CONFIG = """
from zaya_jax import config


def get_config():
    return config.to_config_dict(
        config.Experiment(
            name="small",
            model=config.Model(vocab_size=300, context_length=64, pad_id=0, eos_id=1, bos_id=2),
            data=config.Data(source={source!r}, heldout_fraction=0.2, cache_dir={cache!r}),
            train=config.Train(sequence_length=32, batch_size=2),
        )
    )
"""


@pytest.fixture
def config(folder, tmp_path):
    """The option that names a config of the small corpus."""
    file = tmp_path / "small.py"
    file.write_text(CONFIG.format(source=str(folder), cache=str(tmp_path / "cache")))
    return f"--config={file}"


def test_prepares_tells_and_shows_a_row(config, tmp_path, capsys):
    out, record = tmp_path / "out", tmp_path / "data.json"
    command = ["data", config, f"--out={out}", "--workers=0", "--row=2", f"--json={record}"]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    told = json.loads(record.read_text())
    (source,) = told["sources"].values()
    assert sum(source["lengths"].values()) == source["train"]["documents"]
    for part in (f"{source['train']['tokens']:,} tokens", "kept", "of the room", "█", "segment 1"):
        assert part in printed
    assert told["row"]["text"] in printed and told["row"]["number"] == 2
    # The same again from what was prepared, and with a length of rows that differs.
    command = ["data", config, f"--config.data.source={out}", f"--json={record}"]
    assert cli.main(command) == 0
    again = json.loads(record.read_text())
    assert list(again["sources"].values()) == [source]
    assert cli.main([*command, "--config.train.sequence_length=16"]) == 0
    assert json.loads(record.read_text())["train"]["rows"] > told["train"]["rows"]


def test_a_row_shows_borders_and_what_is_not_learnt(tmp_path, capsys):
    messages = [
        {"role": "user", "content": "Say it."},
        {"role": "assistant", "content": "<think>hm</think>done"},
    ]
    lines = [{"messages": messages}, {"messages": [{**messages[0], "content": "Go."}, messages[1]]}]
    chats = tmp_path / "chat.jsonl"
    chats.write_text("\n".join(map(json.dumps, [*lines, *lines])))
    file = tmp_path / "small.py"
    file.write_text(CONFIG.format(source=str(chats), cache=str(tmp_path / "cache")))
    override = ["--config.data.packing=best_fit", "--config.train.sequence_length=60"]
    assert cli.main(["data", f"--config={file}", *override, "--row=0", "--workers=0"]) == 0
    row = capsys.readouterr().out.split("row 0 of 1:\n")[1]
    assert "── segment 2: " in row and "of padding" in row
    assert row.count("<|im_start|>assistant\n⟧<think>hm</think>done<|im_end|>⟦\n⟧") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--row=100000"], "--row=100000: there are rows 0 to"),
        (["--row=-1"], "--row=-1: there are rows 0 to"),
        (["--workers=-1"], "--workers=-1: expected 0"),
        (["--config.data.source=nowhere"], "no corpus at 'nowhere'"),
        (["--config.model.vocab_size=260"], "needs at least 267"),
        (["--out={tmp}"], "holds 'corpus'|holds 'small.py', which is no prepared data"),
        (["--out={tmp}/small.py"], "is a file, expected a folder"),
        (["--out={tmp}/corpus/out"], "corpus/out lies in the source .* choose a folder elsewhere"),
        (["--config.data.cache_dir={tmp}/corpus"], "corpus lies in the source"),
    ],
)
def test_mistakes_end_with_one_line(config, tmp_path, capsys, options, message):
    import re

    options = [option.format(tmp=tmp_path) for option in options]
    assert cli.main(["data", config, "--workers=0", *options]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1
