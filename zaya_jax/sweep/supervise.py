"""One trial: its runs, one seed after the other, each a `launch.py train` (or, for a stage of
reinforcement learning, `launch.py rl`) of its own process.

A run that fails fails its trial, no other. A run whose process was killed from outside is started
again and goes on from its checkpoint. What is there already is not done twice.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from zaya_jax.config import Experiment, Pruning, to_dict
from zaya_jax.sweep import child, measures, plan, prune, record
from zaya_jax.sweep.measures import MEASURES
from zaya_jax.sweep.prune import Points
from zaya_jax.sweep.study import Outcome
from zaya_jax.train import metrics, workdir

ROOT = Path(__file__).parents[2]
RESTARTS = 2
"""Times that a run whose process was killed is started again."""
LOOK_SECONDS, GRACE_SECONDS = 0.2, 60.0
"""How often a run is looked at, and how long one that was told to end may take to save."""
TOLD_TO_END = tuple(128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))
REASON_LINES, REASON_LENGTH = 5, 1000

Wait = Callable[[float], bool]
"""Waits for so many seconds, or until the sweep is to stop; says whether it is."""


class Stopped(Exception):
    """The sweep is to stop."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A trial as a worker gets it, on whatever machine; paths are relative to the working folder.

    Attributes:
      sweep: the sweep's directory.
      experiments: by seed, in the order of their runs.
      objective: name of the measure.
      others: by seed, the points of the trials that this one is compared with.
      program: what `train --config=... --workdir=...` (or `rl ...`) is appended to.
    """

    number: int
    sweep: Path
    experiments: Mapping[int, Experiment]
    objective: str
    pruning: Pruning
    others: Mapping[int, Sequence[Points]]
    program: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _End:
    """How a run ended, if not as it should."""

    state: str
    reason: str


def supervise(task: Task, environment: Mapping[str, str], wait: Wait) -> Outcome:
    """Makes the runs of a trial, or what is missing of them, and says what came of it.

    Args:
      environment: variables for the runs, beside those of this process.
      wait: see `Wait`.
    """
    measure = MEASURES[task.objective]
    values: dict[int, float | None] = {}
    points: dict[int, Points] = {}
    seconds = 0.0
    end: _End | None = None
    for seed, experiment in task.experiments.items():
        folder = record.folder_of(task.sweep, task.number, seed)
        try:
            end = _run(task, seed, environment, wait)
        except Stopped:
            end = _End("stopped", "the sweep was stopped")
        except OSError as error:  # a full disk, no room for a process
            end = _End("failed", f"seed {seed}: {error}")
        lines = measures.read(folder, experiment)
        seconds += measures.seconds(lines) or 0.0
        points[seed] = prune.points(measure, lines)
        verdict = None if end else _verdict(task, seed, points[seed])
        if verdict is not None:
            step, value = verdict
            points[seed] = tuple(point for point in points[seed] if point[0] <= step)
            end = _End("pruned", f"seed {seed}, step {step}: {measure.name} {value:.4g}, worse "
                       f"than the median of {len(task.others[seed])} earlier trials")  # fmt: skip
        if end is not None:
            break
        values[seed] = measure(lines)
    if end is not None:
        return Outcome(end.state, values, points, end.reason, seconds)
    without = [str(seed) for seed, value in values.items() if value is None]
    reason = f"{measure.title}: not reached by seed {', '.join(without)}" if without else None
    return Outcome("complete", values, points, reason, seconds)


def finished(folder: Path, experiment: Experiment) -> bool:
    """Whether a run directory holds all of a run: cheap, and without jax.

    A run is, that has the evaluation of its last step, and the checkpoint of it unless somebody
    removed them all.
    """
    try:
        config = json.loads((folder / workdir.CONFIG).read_text())
    except (OSError, ValueError):
        return False
    last = experiment.train.steps
    saved = [path.name for path in (folder / workdir.CHECKPOINTS).glob("[0-9]*")]
    return (
        config == record.plain(to_dict(experiment))
        and (not saved or str(last) in saved)
        and any(line["step"] == last for line in metrics.evaluations(folder))
    )


def _run(task: Task, seed: int, environment: Mapping[str, str], wait: Wait) -> _End | None:
    """One run, as often as it must be started.

    Raises:
      Stopped: before its end.
    """
    experiment = task.experiments[seed]
    folder = record.folder_of(task.sweep, task.number, seed)
    config = plan.config_file(task.sweep, task.number, seed)
    code = 0
    for _ in range(1 + RESTARTS):
        if finished(folder, experiment) or _is_behind(task, seed, folder):
            return None
        workdir.write_json(config, to_dict(experiment))
        _wait_for_lock(folder, wait)
        log = folder.with_suffix(".log")
        before = log.stat().st_size if log.exists() else 0
        process = _start(task, seed, config, folder, log, environment)
        try:
            pruned = _watch(task, seed, folder, process, wait)
        finally:
            _end(process)
        if pruned:
            return None  # the verdict, which falls once more, says why
        code = process.returncode
        if code >= 0 and code not in TOLD_TO_END:
            break
        if wait(0):
            raise Stopped
    if code == 0 and finished(folder, experiment):
        return None
    if code >= 0 and code not in TOLD_TO_END:
        return _End("failed", f"seed {seed}, exit status {code}: {_last_words(log, before)}")
    killer = signal.Signals(-code if code < 0 else code - 128).name
    return _End(
        "failed",
        f"seed {seed}: its process was ended from outside {1 + RESTARTS} times, at last by "
        f"{killer}; SIGKILL mostly means that the machine is out of memory",
    )


def _start(
    task: Task, seed: int, config: Path, folder: Path, log: Path, environment: Mapping[str, str]
) -> subprocess.Popen:
    """Starts a run in a session of its own: Ctrl-C is for the sweep, which passes it on."""
    verb = plan.verb_of(task.experiments[seed])
    command = [verb, f"--config={_nearest(ROOT / plan.SAVED)}:{config}", f"--workdir={folder}"]
    child_script = [sys.executable, "-IS", str(Path(child.__file__)), str(os.getpid())]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*child_script, *task.program, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **environment},
        )


def launcher() -> tuple[str, ...]:
    """What a verb of this house is appended to."""
    return (sys.executable, str(_nearest(ROOT / "launch.py")))


def _nearest(path: Path) -> Path:
    """A path as one would type it here."""
    return Path(os.path.relpath(path)) if path.is_relative_to(Path.cwd()) else path


def _watch(task: Task, seed: int, folder: Path, process: subprocess.Popen, wait: Wait) -> bool:
    """Waits for the end of a run; True if it is to be given up.

    Raises:
      Stopped: the sweep is to stop.
    """
    file, size = folder / workdir.METRICS, 0
    looks = task.pruning.kind != "none" and bool(task.others[seed])
    while True:
        try:
            process.wait(LOOK_SECONDS)
            return False
        except subprocess.TimeoutExpired:
            pass
        if wait(0):
            raise Stopped
        if looks and file.exists() and file.stat().st_size != size:
            size = file.stat().st_size
            if _is_behind(task, seed, folder):
                return True


def _is_behind(task: Task, seed: int, folder: Path) -> bool:
    lines = measures.read(folder, task.experiments[seed])
    return _verdict(task, seed, prune.points(MEASURES[task.objective], lines)) is not None


def _verdict(task: Task, seed: int, run: Points) -> tuple[int, float] | None:
    goal = MEASURES[task.objective].goal
    return prune.behind(task.pruning, goal, run, task.others[seed])


def _end(process: subprocess.Popen) -> None:
    """Lets a run that is still there save and end; kills it if it takes too long."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(GRACE_SECONDS)
        except BaseException:  # Ctrl-C as well: somebody is in a hurry
            process.kill()
            process.wait()


def _wait_for_lock(folder: Path, wait: Wait) -> None:
    """Waits while a process of an earlier start still trains (or saves) in a run directory.

    Raises:
      Stopped: the sweep is to stop.
    """
    file = folder / workdir.LOCK
    while file.exists():
        with file.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                pass
            except OSError:
                return  # a file system without locks
        if wait(LOOK_SECONDS):
            raise Stopped


def _last_words(log: Path, start: int) -> str:
    """What a run said last: its error, or the end of its traceback."""
    with log.open("rb") as file:
        file.seek(start)
        text = file.read().decode(errors="replace").replace("\r", "\n")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    said = lines[errors[-1] :] if errors else lines[-REASON_LINES:]
    return "\n".join(said)[:REASON_LENGTH] or "it said nothing"


def sleep(seconds: float) -> bool:
    """A `Wait` that nobody stops."""
    time.sleep(seconds)
    return False
