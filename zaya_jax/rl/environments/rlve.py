"""rlve-gym's 400 environments, whose difficulty is a number: tasks for the curriculum, verdicts.

The package seeds Python's and NumPy's global generators, runs its generators in threads that it
leaves behind, and imports torch only to seed it too. So it lives in worker processes of its own,
and torch, where nothing has imported it, is a stand-in that is never seeded.

A difficulty d is d updates of the environment's parameter controller. An answer is right if the
environment calls it so (r = 1[|y' - y| < eps], report section IV-B): its partial rewards, from -1
to 1, are not used.
"""

from __future__ import annotations

import importlib
import random
import sys
import types
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from zaya_jax.answers import FORMATS, extract
from zaya_jax.answers.workers import Workers
from zaya_jax.errors import UserError, hint
from zaya_jax.rl.rewards.interface import Submission, Task
from zaya_jax.sandbox import values

SOURCE = "rlve"
TRIES = 8
"""Seeds that are tried until an environment makes a task: some give up on some."""
MAKING_SECONDS = 60.0
_MARKS = ("<answer>", "</answer>")


class Question(NamedTuple):
    """Names a task: the same one everywhere.

    Attributes:
      environment: as rlve-gym calls it, such as `Sorting`.
      difficulty: d, at least 0.
      seed: of the task.
    """

    environment: str
    difficulty: int
    seed: int


class Maker:
    """Makes tasks in worker processes. A context manager: leaving it ends them."""

    def __init__(self, processes: int = 2, seconds: float = MAKING_SECONDS):
        """Args:
        processes: that run side by side.
        seconds: that a task may take to be made.
        """
        self._workers = Workers(f"{__name__}:make", processes=processes, seconds=seconds)

    def __enter__(self) -> Maker:
        return self

    def __exit__(self, *error: object) -> None:
        self._workers.close()

    def tasks(
        self, questions: Sequence[Question], *, lenient: bool = False
    ) -> list[Task | None]:
        """A task for each question; None where the environment makes none, in time or at all.

        Args:
          lenient: whether an environment that raises makes none, too.

        Raises:
          UserError: the package is missing, there is no such environment.
        """
        made: list[Task | None] = []
        for question, outcome in zip(questions, self._workers.map(list(questions)), strict=True):
            if outcome.failure == "unstarted" or (outcome.failure == "raised" and not lenient):
                raise UserError(f"environment {question.environment!r}: {outcome.message}")
            made.append(outcome.value)
        return made


def all_names() -> list[str]:
    """The environments that there are, in order; asks a worker, so nothing is imported here.

    Raises:
      UserError: the package is missing.
    """
    with Workers(f"{__name__}:_names", processes=1, seconds=MAKING_SECONDS) as workers:
        (outcome,) = workers.map([None])
    if outcome.failure is not None:
        raise UserError(str(outcome.message))
    return outcome.value


def _names(_: None) -> list[str]:
    return sorted(names())


def make(question: Question) -> Task | None:
    """A task; None if the environment makes none of these seeds. Runs in a worker.

    Raises:
      UserError: the package is missing, or has no such environment; a negative difficulty.
    """
    name, difficulty, seed = question
    environments, controllers = _package()
    if name not in environments:
        raise UserError(f"rlve-gym has no environment {name!r}{hint(name, environments)}")
    if difficulty < 0:
        raise UserError(f"difficulty {difficulty} of {name!r} is below 0")
    controller = controllers[name]()
    for _ in range(difficulty):
        controller.update()
    draws = random.Random(seed)
    for _ in range(TRIES):
        parameter = draws.choice(controller.get_parameter_list())
        environment = environments[name](answer_markers=_MARKS)
        if not environment.generator(draws.getrandbits(31), parameter):
            continue
        config = environment.get_config()
        try:
            about = {key: values.encode(value) for key, value in config.items()}
        except values.NotPlain:
            continue
        reference = config["parameter"].get("reference_answer")
        return Task(
            prompt=f"{environment.prompt_generator().strip()}\n\n{FORMATS['answer']}",
            answer="judged by the environment" if reference is None else str(reference),
            verifier=f"{__name__}:verify",
            source=f"{SOURCE}/{name}",
            name=f"{difficulty}-{seed}",
            metadata={"environment": name, "difficulty": difficulty, "config": about},
        )
    return None


def verify(submission: Submission) -> float:
    """1 if the environment calls the response's answer right; else 0. Runs in a worker.

    Raises:
      UserError: the package is missing.
    """
    about = submission.metadata
    answer = extract(submission.response, "answer", thinking=submission.thinking)
    if answer is None or _is_power(about["environment"], answer):
        return 0.0
    environment = _package()[0][about["environment"]](answer_markers=_MARKS)
    environment.set_config({key: values.decode(value) for key, value in about["config"].items()})
    return float(environment.verifier(f"{_MARKS[0]}{answer}{_MARKS[1]}")["accuracy"])


@cache
def names() -> tuple[str, ...]:
    """The environments that there are. Imports the package: for workers and tests.

    Raises:
      UserError: the package is missing.
    """
    return tuple(_package()[0])


def _is_power(environment: str, answer: str) -> bool:
    """Countdown evaluates answers; `9**9**9`, which is none of its operations, takes for ever."""
    return environment.startswith("Countdown") and "**" in answer.replace(" ", "")


@cache
def _package() -> tuple[dict[str, Any], dict[str, Any]]:
    """Environments and controllers of difficulty, by name."""
    stand_in = types.ModuleType("torch")
    stand_in.manual_seed = lambda seed: None  # type: ignore[attr-defined]
    stand_in.cuda = types.SimpleNamespace(manual_seed_all=lambda seed: None)  # type: ignore[attr-defined]
    added = sys.modules.setdefault("torch", stand_in) is stand_in
    try:
        environments = importlib.import_module("Gym.environments").identifier2environment
        controllers = importlib.import_module("Gym.parameter_controllers").identifier2controller
    except ModuleNotFoundError as error:
        raise UserError(
            f"rlve-gym, or {error.name}, is not installed: pip install -r requirements-rl.txt"
        ) from None
    finally:
        if added:
            del sys.modules["torch"]
    return environments, controllers
