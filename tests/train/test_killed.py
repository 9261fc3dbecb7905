"""Runs that are killed at any moment end in the state of one that was not."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from zaya_jax.config import Attention, Router, to_dict
from zaya_jax.train import loop
from zaya_jax.train.checkpoint import Checkpoints

PROGRAM = """
import json, sys
from zaya_jax.config import from_dict
from zaya_jax.train import loop
loop.train(from_dict(json.load(sys.stdin)), sys.argv[1])
"""


@pytest.fixture(scope="module")
def small(experiment):
    """A layer of 16 channels: a start is what takes time. It saves every other step."""
    model = dataclasses.replace(
        experiment.model,
        hidden_size=16,
        num_layers=1,
        expert_width=8,
        attention=Attention(heads=2, kv_heads=1, head_dim=8),
        router=Router(experts=4, width=8),
    )
    train = dataclasses.replace(
        experiment.train, steps=60, checkpoint_every=2, eval_every=30, keep_checkpoints=2
    )
    data = dataclasses.replace(experiment.data, heldout_max_bytes=500)
    return dataclasses.replace(experiment, model=model, train=train, data=data)


def start(experiment, folder: Path) -> subprocess.Popen:
    """The run as a process of its own, as `launch.py train` would have it."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "."},
    )
    process.stdin.write(json.dumps(to_dict(experiment)))
    process.stdin.close()
    return process


def until(process: subprocess.Popen, what) -> None:
    while process.poll() is None and not what():
        time.sleep(0.0005)


def lines(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_bytes().splitlines()) if file.exists() else 0


def finish(experiment, folder: Path, listener):
    """Lets the run come to its end, in this process, and reads the state it came to."""
    loop.train(experiment, folder, listener())
    checkpoints = Checkpoints(folder, experiment)
    try:
        return checkpoints.restore()
    finally:
        checkpoints.close()


def killed_at_random(experiment, folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Starts and kills the run so many times; counts what the kills hit."""
    rng, hit = random.Random(seed), {"saving": 0, "between": 0, "finished": 0}
    checkpoints = folder / "checkpoints"

    def writing() -> bool:
        return any(checkpoints.glob(".scratch-*"))

    for number in range(kills):
        process = start(experiment, folder)
        if number % 4 == 3:  # wherever it is: importing, compiling, restoring
            time.sleep(rng.uniform(0, 8))
        else:
            before = lines(folder)
            until(process, lambda: lines(folder) > before)  # noqa: B023
            if number % 2 == 0:
                until(process, writing)
                time.sleep(rng.uniform(0, 0.01))
            else:
                time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        ended = process.returncode == 0
        hit["finished" if ended else "saving" if writing() else "between"] += 1
    return hit


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def whole(small, listener, tmp_path_factory):
    """The last state of a run that nobody killed."""
    return finish(small, tmp_path_factory.mktemp("whole"), listener)


@pytest.mark.slow  # many starts; tests/train/test_loop.py has a run that dies in this process
def test_a_run_killed_twice_ends_as_if_it_had_not_been(small, whole, listener, tmp_path):
    killed_at_random(small, tmp_path, kills=2, seed=0)
    assert_same(finish(small, tmp_path, listener), whole)


@pytest.mark.slow
def test_a_run_killed_twenty_times_ends_as_if_it_had_not_been(small, whole, listener, tmp_path):
    """In four runs of five kills, each let to its end: a kill late in a run counts too."""
    hits = []
    for seed in range(4):
        hits.append(killed_at_random(small, tmp_path / str(seed), kills=5, seed=seed))
        assert_same(finish(small, tmp_path / str(seed), listener), whole)
    assert sum(hit["finished"] for hit in hits) == 0
    assert sum(hit["saving"] for hit in hits) >= 4, hits
