"""Optuna's storage of a sweep: what was drawn, what came of it, and whose sweep it is.

A trial is written when it is drawn, in one transaction, and once more when it is told what came of
it. A process may be killed between any two of these: what is there is whole.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sqlite3
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError  # Optuna's storage stands on it

from zaya_jax import config
from zaya_jax.config import Sweep, to_dict
from zaya_jax.config.build import tuples
from zaya_jax.config.sweep import flat
from zaya_jax.errors import UserError
from zaya_jax.sweep import draw as draw_lib
from zaya_jax.sweep.draw import Draw
from zaya_jax.sweep.measures import MEASURES
from zaya_jax.sweep.prune import Points
from zaya_jax.sweep.record import STUDY, SWEEP, plain
from zaya_jax.train import workdir

NAME = "sweep"
STRIDE = 10**9
"""Steps between the runs of two seeds, on the one axis that Optuna has for values on the way."""

MAY_CHANGE = ("name", "about", "file", "trials", "measures", "claims")
"""Fields in which the sweep of a later start may differ from the one that is there."""

_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "invalid": TrialState.FAIL,
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
      state: complete, pruned, failed or invalid; `stopped` if somebody stopped it before its end.
      values: the objective by seed, None where the run has no such number.
      points: the objective at evaluations, by seed.
      reason: why it ended otherwise than complete, or has no value.
      seconds: wall time of its runs.
    """

    state: str
    values: dict[int, float | None] = dataclasses.field(default_factory=dict)
    points: dict[int, Points] = dataclasses.field(default_factory=dict)
    reason: str | None = None
    seconds: float = 0.0

    @property
    def value(self) -> float | None:
        """Mean over all seeds of a complete trial; None if a seed has no number."""
        known = [value for value in self.values.values() if value is not None]
        if self.state != "complete" or not known or len(known) < len(self.values):
            return None
        return math.fsum(known) / len(known)


class Study:
    """The storage of one sweep.

    Args:
      folder: the sweep's directory.

    Attributes:
      draws: of all trials that were drawn, by number.
      outcomes: by number, as far as they were told.

    Raises:
      UserError: what is there is of another sweep, or cannot be read.
    """

    def __init__(self, sweep: Sweep, folder: Path):
        self._sweep, file = sweep, folder / STUDY
        try:
            # Opened by hand: Optuna would take a `?` or a brace in a path for something else.
            connect = functools.partial(sqlite3.connect, file.absolute(), check_same_thread=False)
            self._storage = optuna.storages.RDBStorage(
                f"sqlite:///{STUDY}", engine_kwargs={"creator": connect}
            )
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=NAME,
                direction=MEASURES[sweep.objective].goal,
                load_if_exists=True,
            )
            there = self._study.user_attrs.get(SWEEP)
        except (SQLAlchemyError, optuna.exceptions.OptunaError) as error:
            raise UserError(f"{file}: no storage of a sweep: {first_line(error)}") from None
        trials = self._study.get_trials(deepcopy=False)
        if there is not None:
            check_same(sweep, there, folder)
        elif trials:
            raise UserError(f"{file}: holds a study of Optuna's that no sweep made: move it away")
        self.draws = [_draw_of(trial) for trial in trials]
        self._check_draws(folder)
        self._study.set_user_attr(SWEEP, to_dict(sweep))
        self._id = self._storage.get_study_id_from_name(NAME)
        self.outcomes = {t.number: _outcome_of(t) for t in trials if t.state.is_finished()}

    def _check_draws(self, folder: Path) -> None:
        """Whether the numbers of arms and points of a grid are those of this sweep."""
        if self._sweep.search not in ("arms", "grid"):
            return
        for number, there in enumerate(self.draws):
            here = draw_lib.draw(self._sweep, number, [])
            if (there.arm, there.fields) != (here.arm, here.fields):
                raise UserError(
                    f"--workdir={folder}: trial {number} is {there.arm or there.fields} there, "
                    f"{here.arm or here.fields} here: the order of arms, and of the fields of a "
                    "grid, numbers the trials"
                )

    def draw(self) -> None:
        """Draws the next trial and writes it down."""
        number = len(self.draws)
        found = draw_lib.draw(self._sweep, number, self._study.get_trials(deepcopy=False))
        self._study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.RUNNING,
                params=found.params,
                distributions=draw_lib.distributions(self._sweep),
                user_attrs={"draw": dataclasses.asdict(found)},
            )
        )
        self.draws.append(found)

    def tell(self, number: int, outcome: Outcome) -> None:
        """Writes down what came of a trial; that is final."""
        trial = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
        self._storage.set_trial_user_attr(trial, "outcome", dataclasses.asdict(outcome))
        if self._sweep.pruning.kind != "none":  # of use to a sampler only where trials are pruned
            for i, seed in enumerate(self._sweep.seeds):
                for step, value in outcome.points.get(seed, ()):
                    self._storage.set_trial_intermediate_value(trial, i * STRIDE + step, value)
        state = _STATES[outcome.state]
        worst = -math.inf if self._study.direction.name == "MAXIMIZE" else math.inf
        # A trial whose runs never came to what is measured is the worst, and a search is to know.
        value = worst if outcome.value is None else outcome.value
        self._study.tell(number, value if state is TrialState.COMPLETE else None, state)
        self.outcomes[number] = outcome

    def close(self) -> None:
        """Gives the file back."""
        self._storage.remove_session()
        self._storage.engine.dispose()


def _draw_of(trial: FrozenTrial) -> Draw:
    """What was drawn, with tuples where JSON has lists."""
    found = Draw(**trial.user_attrs["draw"])
    return dataclasses.replace(found, fields={k: tuples(v) for k, v in found.fields.items()})


def _outcome_of(trial: FrozenTrial) -> Outcome:
    """What came of a trial that was told."""
    found: dict[str, Any] = dict(trial.user_attrs["outcome"])
    for name in ("values", "points"):
        found[name] = {int(seed): value for seed, value in found[name].items()}
    found["points"] = {
        seed: tuple((step, value) for step, value in run) for seed, run in found["points"].items()
    }
    return Outcome(**found)


def check_same(sweep: Sweep, there: dict[str, Any], folder: Path) -> None:
    """Compares a sweep with the one that a directory holds.

    Raises:
      UserError: it is another one; lists the fields that differ.
    """
    try:  # fields that it was begun without have their defaults
        there = plain(to_dict(config.sweep_from_dict(there)))
    except UserError:
        pass  # of another version: as it is
    here = plain(to_dict(sweep))
    changed = {
        path: values
        for path, values in workdir.differences(there, here).items()
        if path.split(".")[0] not in MAY_CHANGE
    }
    for name in ("arms", "space"):  # their order numbers the trials, and leads the samplers
        old, new = (list(flat(data.get(name, {}))) for data in (there, here))
        if old != new and sorted(old) == sorted(new):
            changed[name] = (old, new)
    if changed:
        lines = [f"  {path}: {old!r} there, {new!r} here" for path, (old, new) in changed.items()]
        raise UserError(
            f"--workdir={folder} holds another sweep:\n" + "\n".join(lines) + "\n"
            "give another --workdir, or the same config to go on with that sweep"
        )


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
