"""The sweep itself: batch after batch is drawn, run, and told to the storage.

Nothing is remembered that is not on the disk, so the driver may be killed at any moment: the same
command finds what was drawn and what was finished, and goes on.
"""

from __future__ import annotations

import dataclasses
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from pathlib import Path

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from zaya_jax.config import ConfigError, Sweep, to_dict
from zaya_jax.data.cache import is_scratch
from zaya_jax.errors import UserError
from zaya_jax.sweep import draw, plan, record
from zaya_jax.sweep.board import Board
from zaya_jax.sweep.executors import Executor
from zaya_jax.sweep.record import Trial
from zaya_jax.sweep.study import Outcome, Study, check_same, first_line
from zaya_jax.sweep.supervise import Task
from zaya_jax.train import interrupt, workdir

TICK_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Result:
    """How a sweep ended.

    Attributes:
      trials: all that were drawn, but those beyond the sweep's number that have not ended.
      interrupted: the signal that left something undone, if one did.
    """

    trials: list[Trial]
    interrupted: signal.Signals | None


def claim(sweep: Sweep, folder: Path) -> None:
    """Makes a folder the directory of a sweep, or takes the sweep in it up again.

    Raises:
      UserError: it cannot be written, or holds another sweep or other things.
    """
    file = folder / record.SWEEP
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if file.exists():
            check_same(sweep, record.read_json(file), folder)
        elif any(path.name != workdir.LOCK and not is_scratch(path) for path in folder.iterdir()):
            raise UserError(
                f"--workdir={folder} is neither empty nor the directory of a sweep (it has no "
                f"{record.SWEEP}): give a new or an empty folder"
            )
        workdir.write_json(file, to_dict(sweep))


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Around what writes to a sweep's directory and its storage.

    Raises:
      UserError: it cannot be written, or no longer: the disk is full.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # of the terminal, not of a file
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--workdir={folder}: cannot write there: {reason}") from error
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = first_line(error.__cause__ or error)
        raise UserError(f"{folder / record.STUDY}: cannot write there: {reason}") from error


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keeps other processes from driving the sweep in `folder` inside the block.

    Raises:
      UserError: another one does.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / workdir.LOCK).open("a")
    with workdir.held(file, f"another process sweeps in --workdir={folder}"):
        yield


def run(
    sweep: Sweep, folder: Path, executor: Executor, program: tuple[str, ...], board: Board
) -> Result:
    """Runs what is left of a sweep.

    Args:
      folder: claimed and locked.
      program: what a run's `train ...` is appended to.

    Raises:
      UserError: as `Study` and `writing`; the same command goes on from what was written.
    """
    study = Study(sweep, folder)
    try:
        with writing(folder), interrupt.requests() as request:
            driver = _Driver(sweep, folder, executor, program, board, study, request)
            for start in _starts(sweep):
                if request or not driver.batch(draw.batch_of(sweep, start)):
                    break
            return Result(driver.records(), request.signal if driver.left else None)
    finally:
        executor.stop()
        study.close()


def _starts(sweep: Sweep) -> Iterator[int]:
    """The first trial of every batch."""
    number = 0
    while number < draw.total(sweep):
        yield number
        number = draw.batch_of(sweep, number).stop


class _Driver:
    """One call of `run`, with everything at hand."""

    def __init__(
        self,
        sweep: Sweep,
        folder: Path,
        executor: Executor,
        program: tuple[str, ...],
        board: Board,
        study: Study,
        request: interrupt.Request,
    ):
        self.sweep, self.folder, self.executor = sweep, folder, executor
        self.program, self.board, self.study, self.request = program, board, study, request
        self.trials: dict[int, Trial] = {}
        self.left = True  # something is not done yet
        for number in range(len(study.draws)):
            if number < draw.total(sweep) or number in study.outcomes:
                self._note(number)  # others were drawn when the sweep had more trials
        self.board.begin(self.records())

    def records(self) -> list[Trial]:
        """The record of every trial, by number."""
        return [self.trials[number] for number in sorted(self.trials)]

    def batch(self, numbers: range) -> bool:
        """Draws, runs and tells the trials of a batch; whether it came to its end."""
        for number in numbers:
            if number >= len(self.study.draws):
                self.study.draw()
            self._note(number)
        record.write_trials(self.folder, self.records())
        outcomes = self._outcomes([n for n in numbers if n not in self.study.outcomes], numbers)
        if any(outcome.state == "stopped" for outcome in outcomes.values()):
            return False
        self.left = numbers.stop < draw.total(self.sweep)
        for number in sorted(outcomes):
            # As long as nothing was drawn after it, a trial that failed may be tried again.
            if outcomes[number].state != "failed" or self.left:
                self.study.tell(number, outcomes[number])
        return True

    def _outcomes(self, numbers: Sequence[int], batch: range) -> dict[int, Outcome]:
        """Runs trials, as many at a time as there are workers."""
        outcomes: dict[int, Outcome] = {}
        waiting, running = deque(numbers), dict[Future[Outcome], int]()
        stopping = False
        while waiting or running:
            while waiting and len(running) < self.executor.workers and not self.request:
                number = waiting.popleft()
                try:
                    task = self._task(number, batch)
                except ConfigError as error:
                    outcomes[number] = Outcome("invalid", reason=str(error))
                    self._note(number, outcomes[number])
                    continue
                running[self.executor.submit(task)] = number
                self._note(number, state="running")
            done, _ = wait(running, TICK_SECONDS, FIRST_COMPLETED)
            for future in done:
                number = running.pop(future)
                outcomes[number] = future.result()
                self._note(number, outcomes[number])
            self.board.show(self.records(), len(running))
            if self.request:
                outcomes |= {number: Outcome("stopped") for number in waiting}
                waiting.clear()
                if not stopping:
                    self.executor.stop()
                    stopping = True
        return outcomes

    def _task(self, number: int, batch: range) -> Task:
        """A trial as a worker gets it.

        Raises:
          ConfigError: its fields make no experiment.
        """
        sweep, fields = self.sweep, self.study.draws[number].fields
        earlier = [self.study.outcomes[n] for n in range(batch.start)]
        complete = [outcome for outcome in earlier if outcome.state == "complete"]
        return Task(
            number,
            self.folder,
            {seed: plan.experiment_of(sweep, fields, seed) for seed in sweep.seeds},
            sweep.objective,
            sweep.pruning,
            {seed: [outcome.points[seed] for outcome in complete] for seed in sweep.seeds},
            self.program,
        )

    def _note(self, number: int, outcome: Outcome | None = None, state: str = "waiting") -> None:
        """Writes the record of a trial anew, and tells of one that ended."""
        drawn, known = self.study.draws[number], outcome or self.study.outcomes.get(number)
        if known is None or known.state == "stopped":
            known = Outcome(state, seconds=known.seconds if known else 0.0)
        old = self.trials.get(number)
        self.trials[number] = Trial(
            number,
            drawn.arm or plan.name_of(drawn.fields),
            known.state,
            drawn.fields,
            {str(seed): value for seed, value in known.values.items()},
            known.value,
            known.reason,
            old.command if old else self._command(number, drawn.fields),
            round(known.seconds, 3),
        )
        if outcome is not None or state == "running":
            record.write_trials(self.folder, self.records())
        if outcome is not None and outcome.state != "stopped":
            self.board.tell(self.trials[number])

    def _command(self, number: int, fields: dict) -> str:
        seed = self.sweep.seeds[0]
        try:
            experiment = plan.experiment_of(self.sweep, fields, seed)
        except ConfigError:
            return ""
        saved = plan.config_file(self.folder, number, seed)
        return plan.command_of(self.sweep, experiment, saved)
