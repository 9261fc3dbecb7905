"""How a sweep is doing: a line for each trial that ends, and a live one under them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from zaya_jax.config import Sweep
from zaya_jax.sweep import draw, record, table
from zaya_jax.sweep.record import Trial
from zaya_jax.train.progress import Progress, clock
from zaya_jax.train.workdir import CHECKPOINTS


class Board:
    """Tells how a sweep is doing.

    Args:
      folder: the sweep's directory, where it is seen which runs of a trial are finished.
      stream: where to; standard error by default.
    """

    def __init__(self, sweep: Sweep, folder: Path, stream: TextIO | None = None):
        self._sweep, self._folder = sweep, folder
        self._progress = Progress(0, stream)
        self._runs = draw.total(sweep) * len(sweep.seeds)
        self._began, self._before = time.monotonic(), 0

    def begin(self, trials: Sequence[Trial]) -> None:
        """What is there already, to which time is not counted."""
        self._before = self._done(trials)
        if trials:
            ended = sum(trial.state in record.ENDED for trial in trials)
            self._progress.say(
                f"going on: {len(trials)} trials were drawn, {ended} of them have ended; "
                f"{self._before} of {self._runs} runs are done"
            )

    def show(self, trials: Sequence[Trial], running: int) -> None:
        """The live line, if it is time for it."""
        if not self._progress.due():
            return
        done = self._done(trials)
        line = f"runs {done}/{self._runs}  {running} trials running"
        best = [trial for trial in table.ranked(self._sweep, trials) if trial.value is not None]
        if best:
            line += f"  best {self._sweep.objective} {best[0].value:.5g} (trial {best[0].number})"
        if done > self._before:
            pace = (time.monotonic() - self._began) / (done - self._before)
            line += f"  {clock(pace * (self._runs - done))} left"
        self._progress.draw(line)

    def tell(self, trial: Trial) -> None:
        """A trial that ended."""
        value = "" if trial.value is None else f", {self._sweep.objective} {trial.value:.5g}"
        reason = f": {trial.reason}" if trial.reason else ""
        self.say(
            f"trial {trial.number} {trial.name}: {trial.state}{value} "
            f"({clock(trial.seconds)}){reason}"
        )

    def say(self, text: str) -> None:
        """A line that stays."""
        self._progress.say(text)

    def _done(self, trials: Sequence[Trial]) -> int:
        """Runs that are over, those of trials that were given up included."""
        return sum(
            len(self._sweep.seeds) if trial.state in record.ENDED else self._finished(trial)
            for trial in trials
        )

    def _finished(self, trial: Trial) -> int:
        """Runs of a trial that have their last checkpoint."""
        last = str(trial.fields.get("train.steps", self._sweep.base.train.steps))
        folders = (
            record.folder_of(self._folder, trial.number, seed) for seed in self._sweep.seeds
        )
        return sum((folder / CHECKPOINTS / last).exists() for folder in folders)
