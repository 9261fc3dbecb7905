"""`kill -9` at random moments: the stage ends in the very losses of one that was let alone."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.rl.conftest import quiet
from zaya_jax import config
from zaya_jax.rl import loop
from zaya_jax.train import metrics, workdir

ROOT = Path(__file__).parents[2]
KILLS = 6


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True])
def test_a_stage_that_is_killed_again_and_again_comes_to_the_same_losses(start, tmp_path, overlap):
    section = config.to_dict(start)["rl"] | {"overlap": overlap}
    train = config.to_dict(start)["train"] | {"steps": 8, "checkpoint_every": 1}
    stage = config.from_dict(config.to_dict(start) | {"rl": section, "train": train})
    loop.run(stage, tmp_path / "whole", quiet())

    file = tmp_path / "stage.json"
    workdir.write_json(file, config.to_dict(stage))
    command = [sys.executable, str(ROOT / "launch.py"), "rl",
               f"--config={ROOT / 'experiments/saved.py'}:{file}",
               f"--workdir={tmp_path / 'killed'}"]  # fmt: skip
    chance = random.Random(0)
    for _ in range(KILLS):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(5, 25))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = [
        [(r["step"], r["loss"], r["reward"]) for r in metrics.read(tmp_path / name) if "loss" in r]
        for name in ("whole", "killed")
    ]
    assert len(lines[0]) == 8 and lines[0] == lines[1]
