"""Checkpoints and rows of real processes that train nothing (`saver.py`): saved by some, gone on
with by others, and killed while they save."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parallel.saver import batches
from tests.parallel.started import PATIENCE, ROOT, until
from zaya_jax.parallel.watch import LOST
from zaya_jax.train.checkpoint import steps_in
from zaya_jax.train.restart import free_port

pytestmark = pytest.mark.slow  # a start of a process takes five seconds of a core


def begin(folder: Path, count: int, steps: int) -> list[subprocess.Popen]:
    """So many processes, of one device each."""
    flags = os.environ.get("XLA_FLAGS", "")
    where = f"localhost:{free_port()}"
    return [
        subprocess.Popen(
            [sys.executable, "tests/parallel/saver.py", str(folder), where]
            + [str(count), str(index), str(steps)],
            cwd=ROOT,
            env=os.environ
            | {
                "PYTHONPATH": str(ROOT),
                "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count=1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(count)
    ]


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """The exit status of each, and what it told."""
    told = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, told, strict=True)]


def saved(folder: Path, count: int, steps: int) -> list[dict]:
    """What each process of a start has found and read."""
    ends = finish(begin(folder, count, steps))
    assert all(status == 0 for status, _ in ends), ends
    (line,) = [line for line in ends[0][1].splitlines() if line.startswith("TOLD ")]
    return json.loads(line.removeprefix("TOLD "))


def stream(told: list[dict]) -> list[list[int]]:
    """The batches of a start, of all processes' rows; asserts that no two have read the same."""
    found = []
    for step in zip(*(one["rows"] for one in told), strict=True):
        rows = [[row for row in place if row is not None] for place in zip(*step, strict=True)]
        assert all(len(row) == 1 for row in rows)
        found.append([row[0] for row in rows])
    return found


def test_4_then_2_then_3_then_1_processes_go_on_with_each_others_checkpoints(tmp_path):
    seen = []
    for number, count in enumerate((4, 2, 3, 1)):
        told = saved(tmp_path, count, 2)
        for one in told:
            assert one["found"] == (2 * number or None) and not one["wrong"]
        seen += stream(told)
    data = batches()
    assert seen == [data.batch(step).tokens[:, 0].tolist() for step in range(8)]


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_in_the_middle_of_a_save(tmp_path, victim):
    """The others end by themselves, and other processes go on from the last whole checkpoint."""
    processes = begin(tmp_path, 2, 10**6)
    checkpoints = tmp_path / "checkpoints"
    until(lambda: steps_in(checkpoints) and list(checkpoints.glob(".scratch-[0-9]*")), *processes)
    processes[victim].kill()
    status, told = finish(processes)[1 - victim]
    assert status == LOST and f"process {victim} of 2 was lost" in told, told
    last = max(steps_in(checkpoints))
    for one in saved(tmp_path, 3, 1):
        assert one["found"] == last and not one["wrong"]
    assert not list(checkpoints.glob(".scratch-*")) and not list(checkpoints.glob("damaged-*"))
