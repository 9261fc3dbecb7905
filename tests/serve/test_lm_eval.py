"""lm-eval's `local-completions` against the server, beside its `hf` on the same folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("torch")
pytest.importorskip("transformers")

pytestmark = pytest.mark.slow
COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
"""
CHOICE = """
task: tiny_choice
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
"""
WRITE = """
task: tiny_write
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 12, do_sample: false}
metric_list: [{metric: bypass, aggregation: bypass, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    place = tmp_path_factory.mktemp("tasks")
    rows = [
        {"question": f"def f{i}(x):\n   ", "choices": [" return x", " x", f" {i}"], "answer": i % 3}
        for i in range(24)
    ]
    data = place / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    for name, text in (("choice", CHOICE), ("write", WRITE)):
        (place / f"{name}.yaml").write_text(COMMON.format(file=data) + text)
    return place


def evaluate(tasks, out, model, arguments):
    command = [
        sys.executable, "-m", "lm_eval", "--model", model, "--model_args", arguments,
        "--tasks", "tiny_choice,tiny_write", "--include_path", str(tasks),
        "--output_path", str(out), "--log_samples", "--batch_size", "4", "--device", "cpu",
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
               "HF_HOME": str(tasks / "home")}  # fmt: skip
    done = subprocess.run(
        command, env=os.environ | offline, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for file in out.rglob("samples_*.jsonl"):
        name = file.name.split("_20")[0].removeprefix("samples_")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        found[name] = [row["resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
    return found


def test_scores_and_texts_are_those_of_transformers(server, folder, tasks, tmp_path):
    url = f"{server.url}/v1/completions"
    ours = evaluate(
        tasks, tmp_path / "ours", "local-completions",
        f"model=tiny,base_url={url},tokenizer={folder},num_concurrent=4,max_retries=1",
    )  # fmt: skip
    theirs = evaluate(tasks, tmp_path / "theirs", "hf", f"pretrained={folder},dtype=float32")
    assert set(ours) == set(theirs) == {"tiny_choice", "tiny_write"}
    assert ours["tiny_write"] == theirs["tiny_write"]

    def scores(rows):
        return [float(score) for row in rows for ((score, _),) in row]

    def greedy(rows):
        return [str(flag) for row in rows for ((_, flag),) in row]

    assert len(scores(ours["tiny_choice"])) == 72
    assert scores(ours["tiny_choice"]) == pytest.approx(scores(theirs["tiny_choice"]), abs=2e-3)
    assert greedy(ours["tiny_choice"]) == greedy(theirs["tiny_choice"])
