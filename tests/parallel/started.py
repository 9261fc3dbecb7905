"""Real processes of `launch.py train`, on a model and texts of a second or two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from zaya_jax import config
from zaya_jax.config import Attention, Data, Experiment, Model, Optim, Router, Train

ROOT = Path(__file__).parents[2]
PATIENCE = 900.0
"""Seconds that anything here may take, on a machine that has much else to do."""


def tiny(folder: Path) -> Experiment:
    """A layer of 16 channels; a mixture of two folders of texts, packed whole, whose weights
    change in the middle of the run. 12 rows, which 1, 2, 3 and 4 processes divide."""
    for part in ("functions", "lists"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        for i in range(12):
            lines = [
                f"def {part}{j}(x, y={i}):\n    return x * {j} + y\n" for j in range(9 + 3 * i)
            ]
            (folder / part / f"m{i:02}.py").write_text("\n\n".join(lines))
    return Experiment(
        name="processes",
        model=Model(
            vocab_size=300,
            hidden_size=16,
            num_layers=1,
            expert_width=8,
            context_length=64,
            pad_id=0,
            eos_id=1,
            attention=Attention(heads=2, kv_heads=1, head_dim=8),
            router=Router(experts=4, width=8),
            layers="unroll",
        ),
        data=Data(
            mixture=((str(folder / "functions"), 2.0), (str(folder / "lists"), 1.0)),
            mixture_schedule=((3, (1.0, 3.0)),),
            packing="best_fit",
            heldout_fraction=0.2,
            heldout_max_bytes=500,
            cache_dir=str(folder / "cache"),
        ),
        train=Train(
            steps=8,
            batch_size=12,
            sequence_length=32,
            log_every=1,
            log_loads=True,
            eval_every=4,
            checkpoint_every=2,
            keep_checkpoints=3,
        ),
        optim=Optim(learning_rate=1e-2, warmup_steps=2),
    )


def config_file(experiment: Experiment, file: Path) -> Path:
    """An experiment as a file with a `get_config`."""
    plain = config.to_config_dict(experiment).to_json_best_effort()
    file.write_text(
        "import json\nfrom zaya_jax import config\n\n\ndef get_config():\n"
        f"    return config.to_config_dict(config.from_dict(json.loads({plain!r})))\n"
    )
    return file


def start(arguments: Sequence[str], devices: int = 1, program: str | None = None):
    """`launch.py train ARGUMENTS`, or a program in its place, with so many virtual devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    begin = ["launch.py", "train"] if program is None else ["-c", program, "train"]
    return subprocess.Popen(
        [sys.executable, *begin, *arguments],
        cwd=ROOT,
        env=os.environ
        | {
            "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
            "PYTHONPATH": str(ROOT),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    """Waits for the end; the exit status, and what was told."""
    try:
        told, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        told, _ = process.communicate()
        raise AssertionError(f"it did not end in {PATIENCE:g} s:\n{told}") from None
    return process.returncode, told


def until(there: Callable[[], object], *running: subprocess.Popen) -> None:
    """Waits for something to be there, as long as all processes run."""
    end = time.monotonic() + PATIENCE
    while not there():
        ended = [process for process in running if process.poll() is not None]
        assert not ended, ended[0].communicate()[0]
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


def records(run: Path) -> list[dict]:
    """The lines of `metrics.jsonl`."""
    file = run / "metrics.jsonl"
    found = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in found if line.endswith("\n")]


def children(process: subprocess.Popen) -> dict[int, int]:
    """The processes that a launcher has started: number in the run -> process id."""
    found = {}
    for task in Path(f"/proc/{process.pid}/task").glob("*/children"):
        for child in task.read_text().split():
            try:
                words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
            except OSError:  # it has just ended
                continue
            for word in words:
                if word.startswith("--process_id="):
                    found[int(word.partition("=")[2])] = int(child)
    return found
