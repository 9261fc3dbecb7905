"""What lies where in the directory of a sweep, and the record of its trials.

    sweep.json              the sweep, fully resolved
    study.db                Optuna's storage: what was drawn, and what came of it
    trials.json             the record of every trial, see `Trial`; what pages are made from
    environment.json        one record for each start: command, versions, commit, hardware
    trials/007/seed-1/      the run directory of trial 7 under seed 1
    trials/007/seed-1.json  the experiment of that run, fully resolved
    trials/007/seed-1.log   what its command printed
    report.html, report.md  see `zaya_jax.report`
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from zaya_jax.errors import UserError
from zaya_jax.train import workdir

SWEEP, STUDY, TRIALS = "sweep.json", "study.db", "trials.json"

STATES = ("waiting", "running", "complete", "pruned", "failed", "invalid")
"""`failed`: a run ended in an error, or its worker was killed too often. `invalid`: the fields make
no experiment that can be run."""
ENDED = ("complete", "pruned", "failed", "invalid")
"""The states of a trial whose runs are over."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One choice of fields.

    Attributes:
      number: from 0, in the order they were drawn.
      name: of the arm, or the fields as text: "balance.kp=0.1 balance.ki=0.005".
      state: one of `STATES`.
      fields: what differs from the sweep's base, by dotted path; lists where the config has tuples.
      values: the objective by seed (seeds as text, as JSON has them), as far as it is known.
      value: their mean over all seeds of a complete trial, else None.
      reason: why it was pruned, failed or is invalid, in words.
      command: the `launch.py train` command of the first seed, without `--workdir`.
      seconds: wall time of its runs together.
    """

    number: int
    name: str
    state: str
    fields: dict[str, Any]
    values: dict[str, float | None] = dataclasses.field(default_factory=dict)
    value: float | None = None
    reason: str | None = None
    command: str = ""
    seconds: float = 0.0


def folder_of(sweep: Path, trial: int, seed: int) -> Path:
    """The run directory of one run of a sweep."""
    return sweep / "trials" / f"{trial:03}" / f"seed-{seed}"


def plain(content: Any) -> Any:
    """Nested data as it comes back from JSON: with lists for tuples."""
    return json.loads(json.dumps(content))


def read_json(file: Path) -> Any:
    """What a JSON file of the sweep says.

    Raises:
      UserError: it is no JSON.
    """
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON: {error}") from None


def write_trials(sweep: Path, trials: list[Trial]) -> None:
    """Writes `trials.json`, whole or not at all."""
    workdir.write_json(sweep / TRIALS, [dataclasses.asdict(trial) for trial in trials])


def read_trials(sweep: Path) -> list[Trial]:
    """The record of every trial so far, by number.

    Raises:
      UserError: there is no such record, or it cannot be read.
    """
    file = sweep / TRIALS
    try:
        return [Trial(**entry) for entry in json.loads(file.read_text())]
    except FileNotFoundError:
        raise UserError(f"{sweep} is no directory of a sweep: it has no {TRIALS}") from None
    except (json.JSONDecodeError, TypeError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None
