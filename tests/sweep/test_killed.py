"""A sweep that is killed at any moment ends as if it had not been."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sweep.fakes import FAKE, GAINS, Run, behaves, make, same, starts
from zaya_jax.config import to_dict
from zaya_jax.sweep import record

PROGRAM = """
import json, sys
from pathlib import Path
from zaya_jax.config import sweep_from_dict
from zaya_jax.sweep import driver
from zaya_jax.sweep.board import Board
from zaya_jax.sweep.executors import Local
sweep, folder = sweep_from_dict(json.load(sys.stdin)), Path(sys.argv[1])
with driver.lock(folder):
    driver.claim(sweep, folder)
    driver.run(sweep, folder, Local([{}, {}]), tuple(sys.argv[2:]), Board(sweep, folder))
"""


def start(sweep, folder):
    """A sweep as a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), *FAKE],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": "."},
    )
    process.stdin.write(json.dumps(to_dict(sweep)))
    process.stdin.close()
    return process


def runs_below(folder):
    """The commands that still train below a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text()
        except OSError:
            continue
        if f"--workdir={folder}" in command:
            found.append(command)
    return found


def killed_in(trials, sweep, folder):
    """Starts the sweep so often, and kills it when a run of these trials has begun."""
    for trial in trials:
        process = start(sweep, folder)
        file = record.folder_of(folder, trial, 1) / "metrics.jsonl"
        while not file.exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert process.returncode < 0, "it came to its end before it was killed"


def check(trials, tmp_path):
    base = behaves("slow:0.05")
    sweep = make(base, search="tpe", space=GAINS, trials=6, at_once=2)
    folder = tmp_path / "killed"
    killed_in(trials, sweep, folder)
    time.sleep(0.5)
    if sys.platform == "linux":
        assert not runs_below(folder)  # they ended with the driver
    Run(sweep, folder)
    Run(sweep, tmp_path / "whole")
    found = [record.read_trials(tmp_path / name) for name in ("killed", "whole")]
    assert same(found[0]) == same(found[1])
    assert starts(folder, trials[-1], 0) == 1 and starts(folder, trials[-1], 1) == 2


def test_a_sweep_that_was_killed_ends_as_if_it_had_not_been(tmp_path):
    check([3], tmp_path)


@pytest.mark.slow
def test_a_sweep_that_was_killed_thrice_ends_as_if_it_had_not_been(tmp_path):
    check([0, 2, 5], tmp_path)
