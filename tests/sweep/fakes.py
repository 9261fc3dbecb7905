"""Sweeps that take a second: their runs are processes that write by a formula (`fake_launch`)."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

from zaya_jax.config import Experiment, Optim, Sweep, Train, sweep_from_dict, to_dict
from zaya_jax.sweep import driver, record
from zaya_jax.sweep.board import Board
from zaya_jax.sweep.executors import Local

FAKE = (sys.executable, "-IS", str(Path(__file__).with_name("fake_launch.py")))
BASE = Experiment(
    train=Train(steps=6, eval_every=3, checkpoint_every=3), optim=Optim(warmup_steps=2)
)
GAINS = {
    "balance": {
        "kp": {"low": 1e-3, "high": 1.0, "log": True},
        "ki": {"low": 1e-4, "high": 1.0, "log": True},
    }
}
"""A space of two gains. The formula is best at kp = 0.1, ki = 0.01."""


def behaves(kind: str, **train) -> Experiment:
    """The base, whose fake runs behave as said."""
    return dataclasses.replace(
        BASE,
        data=dataclasses.replace(BASE.data, source=kind),
        train=dataclasses.replace(BASE.train, **train),
    )


def make(base: Experiment = BASE, **fields) -> Sweep:
    """A checked sweep: `make(search="tpe", space=GAINS)`."""
    return sweep_from_dict(to_dict(Sweep(base=base, **{"seeds": (0, 1), **fields})))


class Run:
    """A sweep that was run: its result, and what was told of it.

    Args:
      at: called with every line that is told.
    """

    def __init__(self, sweep: Sweep, folder: Path, workers=2, executor=None, at=None):
        self.text = io.StringIO()
        board = Board(sweep, folder, self.text)
        if at is not None:
            say = board.say
            board.say = lambda text: (say(text), at(text))
        with driver.lock(folder):
            driver.claim(sweep, folder)
            executor = executor or Local([{"NPROC": "1"}] * workers)
            try:
                self.result = driver.run(sweep, folder, executor, FAKE, board)
            finally:
                executor.close()
        self.trials = self.result.trials

    @property
    def states(self) -> dict[str, str]:
        return {trial.name: trial.state for trial in self.trials}


def same(trials):
    """Trials without what may differ in another folder, or after a kill."""
    return [dataclasses.replace(trial, seconds=0, command="") for trial in trials]


def starts(folder: Path, trial: int, seed: int) -> int:
    """How often a fake run was started."""
    return len((record.folder_of(folder, trial, seed) / "starts").read_text().split())
