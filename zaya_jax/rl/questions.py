"""Which task comes when: task n of a stage is a function of the config and of n alone."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from zaya_jax.config.rl import Curriculum as Section
from zaya_jax.data.sources import function
from zaya_jax.errors import UserError
from zaya_jax.rl import graded as graded_lib
from zaya_jax.rl.graded import Graded, hash_of
from zaya_jax.rl.rewards.interface import Task
from zaya_jax.rl.rewards.tasks import read_tasks

GYM = "reasoning_gym:"
_HELDOUT = 1 << 30
"""Numbers of held-out puzzles start here: a stage never comes so far."""
BLOCK = 4096
"""Puzzles of one data set of reasoning-gym, which counts its seed up from task to task."""
HELDOUT_LEVELS = 4
"""Difficulties of held-out tasks of a graded source, from that at which it begins."""
BEGINNING = Section()
"""Every graded source at difficulty 0, moved by the report's rule."""
_HELDOUT_SEED = 0
"""What is held out does not depend on a run's seed: runs of several seeds are scored on the same
tasks, and what a model learns before RL can keep clear of them."""


class Questions:
    """The tasks of a stage, and those that are held out to score on.

    A puzzle without end gives a new one each time; a file's tasks come in an order of their own in
    each epoch. What is asked in a held-out task is never asked in training.

    Graded sources are asked as their curriculum says, which depends on how earlier tasks were
    answered too; so it is part of a stage's state.

    Attributes:
      heldout: tasks to score on, the sources in turn; of graded ones at their first difficulties.
      graded: the graded sources; None without any.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str, float]],
        *,
        heldout: int,
        seed: int,
        curriculum: Section = BEGINNING,
    ):
        """Args:
          sources: (name, weight), see `zaya_jax.config.rl.RL.tasks`.
          heldout: how many tasks to hold out.
          seed: of order and mixture.
          curriculum: of graded sources.

        Raises:
          UserError: no source, a weight that is not above 0, a source that cannot be read, or a
            file with no task left to train on.
        """
        if not sources:
            raise UserError("rl.tasks is empty: name what to ask, see docs/rl.md")
        for name, weight in sources:
            if not 0 < weight < float("inf"):
                raise UserError(f"rl.tasks: {name} has weight {weight}; expected more than 0")
        weights = np.array([weight for _, weight in sources], np.float64)
        self._shares, self._seed = weights / weights.sum(), seed
        each = _each(sources, heldout)
        names = [name for name, _ in sources if graded_lib.is_graded(name)]
        self.graded = Graded(names, curriculum, seed) if names else None
        opened = [
            self._open_graded(name, held, curriculum)
            if self.graded is not None and name in names
            else _open(name, held, seed)
            for (name, _), held in zip(sources, each, strict=True)
        ]
        self._tasks = [source for source, _ in opened]
        self._graded = [name in names for name, _ in sources]
        self._drawn: list[tuple[int, int]] = []
        self._counts = [0] * len(opened)
        self.heldout: tuple[Task, ...] = tuple(task for _, held in opened for task in held)
        self._known = {task.prompt for task in self.heldout}

    def __call__(self, number: int) -> Task | None:
        """Task `number` of the stage; None where that would be a held-out one: ask the next."""
        source, place = self._draw(number)
        task = self._tasks[source](number if self._graded[source] else place)
        return None if task is None or task.prompt in self._known else task

    def _draw(self, number: int) -> tuple[int, int]:
        """The source of task `number`, and how many of its tasks were asked before."""
        while len(self._drawn) <= number:
            at = len(self._drawn)
            draw = np.random.default_rng((self._seed, 0, at)).random()
            source = int(np.searchsorted(np.cumsum(self._shares), draw, side="right"))
            source = min(source, len(self._tasks) - 1)
            self._drawn.append((source, self._counts[source]))
            self._counts[source] += 1
        return self._drawn[number]

    def cannot_ask(self, number: int) -> None:
        """A task's prompt is too long: a graded one counts as failed, so it gets easier."""
        if self.graded is not None:
            self.graded.scored(number, 0.0, 1)

    @property
    def fingerprint(self) -> str:
        """A hash of the held-out tasks and of the first that are asked."""
        asked = [task(0) for task, graded in zip(self._tasks, self._graded, strict=True)
                 if not graded]  # fmt: skip
        words = [(task.prompt, task.answer) for task in (*self.heldout, *asked) if task is not None]
        return hashlib.sha256(json.dumps(words).encode()).hexdigest()

    def _open_graded(
        self, name: str, heldout: int, section: Section
    ) -> tuple[Callable[[int], Task | None], list[Task]]:
        assert self.graded is not None
        levels = [section.start + i % HELDOUT_LEVELS for i in range(heldout)]
        held = [
            self.graded.at(name, level, _HELDOUT + i, _HELDOUT_SEED)
            for i, level in enumerate(levels)
        ]
        return self.graded.ask, [task for task in held if task is not None]


def unseen(
    tasks: Iterable[Task], sources: Sequence[tuple[str, float]], heldout: int
) -> Iterator[Task]:
    """Those tasks whose prompts are not among the held-out ones of sources, each prompt once: what
    a model may be shown before it is scored."""
    known = {task.prompt for task in Questions(sources, heldout=heldout, seed=0).heldout}
    for task in tasks:
        if task.prompt not in known:
            known.add(task.prompt)
            yield task


def _puzzles(name: str) -> Callable[[int, int], Task]:
    """Of a source of reasoning-gym: from a seed and a number to the task.

    Tasks of two seeds have nothing in common: `Random(seed + number)`, as the package has it, would
    make those of seeds 0 and 1 the same but for one.
    """
    from zaya_jax.rl.rewards.reasoning_gym import Environment

    environment, _, text = name.removeprefix(GYM).partition("?")
    try:
        parameters = json.loads(text or "{}")
        if not isinstance(parameters, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise UserError(f"rl.tasks: the parameters in {name!r} are no JSON: {error}") from None

    def puzzle(seed: int, number: int) -> Task:
        block, place = divmod(number, BLOCK)
        data = Environment(environment, seed=hash_of(seed, block), size=BLOCK, **parameters)
        return dataclasses.replace(data.task(place), name=str(number))

    puzzle(0, 0)  # mistakes are told before anything is generated
    return puzzle


def _each(sources: Sequence[tuple[str, float]], heldout: int) -> list[int]:
    """How many tasks each source holds out."""
    return [heldout // len(sources) + (i < heldout % len(sources)) for i in range(len(sources))]


def _open(name: str, heldout: int, seed: int) -> tuple[Callable[[int], Task], list[Task]]:
    """A source: from the number of a task to the task, and what it holds out."""
    if name.startswith(GYM):
        puzzle = _puzzles(name)
        held_out = [puzzle(_HELDOUT_SEED, _HELDOUT + i) for i in range(heldout)]
        return functools.partial(puzzle, seed), held_out
    path = Path(name)
    try:
        made = None if path.exists() else function(name)
    except ValueError as error:
        raise UserError(f"rl.tasks: {error}") from None
    if made is None and not path.is_file():
        raise UserError(f"rl.tasks: {name!r} is no file, and does not begin with {GYM!r}")
    tasks = list(read_tasks(path) if made is None else made())
    order = np.random.default_rng((_HELDOUT_SEED, 1)).permutation(len(tasks)).tolist()
    held, rest = [tasks[i] for i in order[:heldout]], [tasks[i] for i in order[heldout:]]
    asked = {task.prompt for task in held}
    rest = [task for task in rest if task.prompt not in asked]
    if not rest:
        raise UserError(
            f"rl.tasks: {name} has {len(tasks)} tasks, and {heldout} are held out: lower rl.heldout"
        )

    def of_file(number: int) -> Task:
        epoch, place = divmod(number, len(rest))
        shuffled = np.random.default_rng((seed, 2, epoch)).permutation(len(rest))
        return rest[int(shuffled[place])]

    return of_file, held
