import json
import re

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


POOL = {
    "problem": "2+2?",
    "rollouts": ["<think>" + "count on " * 50 + "</think>4", "<think>hm</think>5"],
    "aggregated": [
        {"candidates": [1, 0], "rollout": "<think>The first is wrong.</think>4"},
        {"candidates": [0, 1], "rollout": "<think>Let me see"},
    ],
}


def test_pools_become_chats_to_train_on(config, tmp_path, capsys):
    pools, out, record = (tmp_path / name for name in ("pools.jsonl", "rsa.jsonl", "told.json"))
    pools.write_text("".join(json.dumps({**POOL, "problem": f"{i}+{i}?"}) + "\n" for i in range(9)))
    command = ["data", config, f"--pools={pools}", "--tail=30", f"--out={out}", f"--json={record}"]
    assert cli.main(command) == 0
    assert "9 aggregation examples, 9 unfinished left out" in capsys.readouterr().out
    assert json.loads(record.read_text()) == {"examples": 9, "unfinished": 9}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert all("Candidate 2 (only the end of its reasoning)" in line["messages"][0]["content"]
               for line in lines)  # fmt: skip
    assert cli.main([*command, "--hybrid"]) == 0
    assert "Reference 2 (its final answer):\\n4" in out.read_text()
    length = "--config.model.context_length=900", "--config.train.sequence_length=900"
    source = [f"--config.data.source={out}", *length]
    assert cli.main(["data", config, *source, "--workers=0", "--row=0"]) == 0
    assert "⟧<think>The first is wrong.</think>4<|im_end|>" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pools={tmp}/pools.jsonl"], "--out is missing"),
        (["--pools={tmp}/pools.jsonl", "--out={tmp}/pools.jsonl"], "is the file of --pools"),
        (["--pools={tmp}/pools.jsonl", "--out={tmp}/chats"], "expected a file to write"),
        (["--pools={tmp}/pools.jsonl", "--out={tmp}/o.jsonl"], "line 2: problem is None"),
        (["--pools={tmp}/none.jsonl", "--out={tmp}/o.jsonl"], "No such file .*none.jsonl"),
        (["--pools={tmp}/pools.jsonl", "--out={tmp}/o.jsonl", "--tail=0"], "tail is 0"),
    ],
)
def test_mistakes_with_pools_end_with_one_line(config, tmp_path, capsys, options, message):
    pools = json.dumps(POOL) + "\n{}\n"
    (tmp_path / "pools.jsonl").write_text(pools)
    assert cli.main(["data", config, *(option.format(tmp=tmp_path) for option in options)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "o.jsonl").exists()
    assert (tmp_path / "pools.jsonl").read_text() == pools


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
    options = [option.format(tmp=tmp_path) for option in options]
    assert cli.main(["data", config, "--workers=0", *options]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.startswith("error: ")
    assert len(error.strip().splitlines()) == 1


def test_a_schedule_is_told_and_recorded(config, folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("zaya_jax.data.recall.EXAMPLES", 100)
    record = tmp_path / "data.json"
    options = [
        f"--config.data.mixture=(({str(folder)!r}, 1.0), ('recall', 0.0))",
        "--config.data.mixture_schedule=((3, (1, 3)), (1_000, (0, 1)))",
    ]
    assert cli.main(["data", config, *options, "--workers=0", f"--json={record}"]) == 0
    printed = capsys.readouterr().out
    assert f"weights from step 3 on: {folder} 0.25, recall 0.75\n" in printed
    assert f"weights from step 1,000 on: {folder} 0, recall 1\n" in printed
    assert json.loads(record.read_text())["schedule"] == [[3, [0.25, 0.75]], [1000, [0, 1]]]
    assert cli.main(["data", config, options[1]]) == 2
    assert "there is no data.mixture whose weights could change" in capsys.readouterr().err
