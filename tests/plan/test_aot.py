"""The verb with --compile: a training step and a microbatch of RL, through the real compiler."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zaya_jax import aot, cli

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
# Two layers of the demo's width over a scan, its ops XLA's own: seconds to compile.
SMALL = [
    "--config.model.num_layers=2", "--config.model.layers=scan", "--config.model.remat=full",
    "--config.model.activation_dtype=bfloat16", "--config.model.vocab_size=512",
    "--config.model.ops.cca_mix=xla", "--config.model.ops.attention=xla",
    "--config.model.ops.router=xla", "--config.model.ops.grouped_matmul=xla",
    "--config.model.ops.residual_norm=xla", "--config.model.ops.cross_entropy=xla",
]  # fmt: skip
RL = [
    "--config=experiments/stages/rl_warmup.py", "--config.model.hidden_size=128",
    "--config.model.expert_width=128", "--config.model.context_length=512",
    "--config.model.router.width=64", "--config.model.attention.heads=4",
    "--config.model.attention.head_dim=32", "--config.train.sequence_length=256",
    "--config.rl.microbatch_tokens=256", "--config.rl.microbatch_rows=8",
    "--config.rl.max_prompt=64", "--config.rl.max_tokens=64",
]  # fmt: skip
TRAIN = ["--config=experiments/zaya1_tiny.py", "--config.train.batch_size=16"]


@pytest.mark.parametrize(
    ("arguments", "mesh"),
    [(TRAIN, "data=2,context=2,expert=2"), (RL, "fsdp=4,expert=2")],
    ids=["training", "reinforcing"],
)
def test_compiled_and_predicted_agree(tmp_path, monkeypatch, capsys, arguments, mesh):
    reason = aot.unavailable(aot.target_of("mi300x"))
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.chdir(ROOT)
    file = tmp_path / "plan.json"
    status = cli.main(["plan", *arguments, *SMALL, f"--mesh={mesh}", "--compile", f"--json={file}"])
    printed = capsys.readouterr()
    assert status == 0, printed.out + printed.err
    record = json.loads(file.read_text())
    compiled, predicted = record["compiled"], record["plan"]
    assert not compiled["error"] and not compiled["warnings"] and compiled["seconds"] > 0
    assert compiled["arguments"] == pytest.approx(predicted["memory"]["arguments"], rel=0.02)
    sums: dict[tuple, list[int]] = {}
    for place, groups in enumerate((predicted["collectives"], compiled["groups"])):
        for group in groups:
            if mesh.startswith("fsdp") and group.get("what") == "matrices for Muon":
                continue  # of RL, the optimizer is another program's
            key = group["kind"], frozenset(group["axes"])
            sums.setdefault(key, [0, 0])[place] += group["bytes"]
    for key, (ours, theirs) in sums.items():
        # XLA may merge what layer 0, one of two, gathers again (`traffic.layers`).
        least = 0.75 if key == ("all-gather", frozenset({"fsdp"})) else 0.95
        assert least * ours - 2**16 < theirs < 1.05 * ours + 2**16, key
