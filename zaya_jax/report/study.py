"""The directory of a sweep as read: the sweep, its trials, and the runs of each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zaya_jax.config.sweep import Sweep, flat
from zaya_jax.errors import UserError
from zaya_jax.report import run as run_lib
from zaya_jax.report.arms import Arm, counting, short_names
from zaya_jax.report.content import told_apart
from zaya_jax.sweep import record
from zaya_jax.sweep.measures import MEASURES
from zaya_jax.sweep.record import Trial
from zaya_jax.train import workdir

Record = dict[str, Any]

OPEN = ("waiting", "running")
"""States of trials of which more is to come."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A sweep, finished or not.

    Attributes:
      settings: `sweep.json`, with defaults for what it does not have.
      arms: by number of the trial, of those that have runs which can be read.
      starts: of the sweep's `environment.json`.
      problems: what is missing or could not be read, in words.
    """

    folder: Path
    settings: Record
    trials: list[Trial]
    arms: dict[int, Arm]
    starts: list[Record]
    problems: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.settings["name"]

    @property
    def objective(self) -> str:
        return self.settings["objective"]

    @property
    def measures(self) -> list[str]:
        """The objective and the further ones."""
        named = [self.objective, *self.settings["measures"]]
        return [name for name in dict.fromkeys(named) if name in MEASURES]

    @property
    def space(self) -> dict[str, Any]:
        """By path of the field: a list of values, or {low, high, log}."""
        return flat(self.settings["space"])

    @property
    def lost(self) -> list[Trial]:
        """The trials that ended without a number: not complete, or without the objective."""
        ended = [trial for trial in self.trials if trial.state not in OPEN]
        return [t for t in ended if t.state != "complete" or t.value is None]


def is_sweep(folder: Path) -> bool:
    """Whether a directory is that of a sweep."""
    return any((folder / name).exists() for name in (record.SWEEP, record.TRIALS))


def read(folder: Path) -> Study:
    """Reads the directory of a sweep.

    Raises:
      UserError: its record of trials cannot be read.
    """
    problems: list[str] = []
    settings = _settings(folder, problems)
    if (folder / record.TRIALS).exists():
        trials = record.read_trials(folder)
    else:
        trials = []
        problems.append(f"There is no {record.TRIALS} yet: no trial was drawn.")
    starts = run_lib.read_json(folder / workdir.ENVIRONMENT, [], problems)
    arms = _arms(folder, settings, trials, problems)
    if settings["objective"] not in MEASURES:
        problems.append(
            f"The objective {settings['objective']!r} is no measure of this version; the page goes "
            "by held-out bits per byte."
        )
        settings["objective"] = Sweep.objective
    _tell_open(trials, problems)
    return Study(folder, settings, trials, arms, starts, tuple(problems))


def _settings(folder: Path, problems: list[str]) -> Record:
    default = json.loads(json.dumps(dataclasses.asdict(Sweep())))
    return default | run_lib.read_json(folder / record.SWEEP, {}, problems)


def _arms(
    folder: Path, settings: Mapping[str, Any], trials: list[Trial], problems: list[str]
) -> dict[int, Arm]:
    found = {}
    said: dict[str, list[str]] = {}
    short = short_names(dict.fromkeys(path for trial in trials for path in trial.fields))
    names = told_apart([{short[p]: x for p, x in trial.fields.items()} for trial in trials])
    for trial, by_fields in zip(trials, names, strict=True):
        runs = {}
        for seed in settings["seeds"]:
            place = record.folder_of(folder, trial.number, seed)
            try:
                run = run_lib.read(place)
            except UserError:
                wrong = ["It cannot be read."]
            else:
                runs[seed] = run
                wrong = list(run.problems)
            if trial.state == "complete" and wrong:
                said.setdefault(" ".join(wrong), []).append(str(place.relative_to(folder)))
        if runs:
            name = (settings["search"] == "arms" and trial.name) or by_fields
            found[trial.number] = Arm(name, trial.fields, runs, trial.command)
    for what, places in said.items():
        others = f" and {len(places) - 1} more" if places[1:] else ""
        problems.append(f"{places[0]}{others}: {what}")
    numbers = list(found)
    return dict(zip(numbers, counting(list(found.values())), strict=True))


def _tell_open(trials: list[Trial], problems: list[str]) -> None:
    """Says what is still to be done."""
    waiting = [t for t in trials if t.state in OPEN]
    if waiting:
        done = len(trials) - len(waiting)
        problems.append(
            f"The sweep is under way, or was stopped: {done} of {len(trials)} trials are done, "
            f"{len(waiting)} are running or waiting."
        )
