"""Sources whose tasks have a difficulty: `rl.tasks` names them, the curriculum asks them.

    rlve:Sorting, rlve:*                                   rlve-gym's environments, or all of them
    reasoning_gym:chain_sum?{"min_terms": "2+d", ...}      a parameter that grows: A+d, A+B*d

All graded sources of a stage are one curriculum: which of them is asked, and how hard, follows from
how its earlier groups were answered (report IV-B, equation 11; `curriculum.schedule`).
"""

from __future__ import annotations

import atexit
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zaya_jax.config.rl import Curriculum as Section
from zaya_jax.errors import UserError
from zaya_jax.rl.curriculum import schedule
from zaya_jax.rl.curriculum.schedule import Curriculum, Draw
from zaya_jax.rl.rewards.interface import Task

RLVE, GYM = "rlve:", "reasoning_gym:"
_GROWS = re.compile(r"(\d+)\+(?:(\d+)\*)?d")
_SEED_BITS = 31

Make = Callable[[int, int], Task | None]
"""The task of a difficulty and a seed; None if there is none."""


def is_graded(source: str) -> bool:
    """Whether a name of `rl.tasks` is that of a graded source."""
    if source.startswith(RLVE):
        return True
    return source.startswith(GYM) and any(
        isinstance(value, str) and _GROWS.fullmatch(value) for value in _parameters(source).values()
    )


class Graded:
    """The graded sources of a stage, and where the policy stands in each."""

    def __init__(self, sources: Sequence[str], section: Section, seed: int):
        """Args:
          sources: names of graded sources.
          section: of the config.
          seed: of all draws.

        Raises:
          UserError: as `schedule.start`; a package that is not installed; no such environment.
        """
        expanded = [name for source in sources for name in _expand(source)]
        self._makers = {source: _maker(source) for source in expanded}
        self._seed = seed
        begin = dict.fromkeys(expanded, section.start)
        self.curriculum = schedule.start(begin, rule=section.rule, seed=seed)
        self._asked: dict[int, Draw] = {}

    def begin(self, at: Mapping[str, int]) -> None:
        """Begins anew, each environment at its own difficulty."""
        now = self.curriculum
        self.curriculum = schedule.start(at, rule=now.rule, seed=now.seed)

    def ask(self, number: int) -> Task | None:
        """Draws an environment and makes task `number` of the stage; None if it makes none."""
        drawn, self.curriculum = schedule.draw(self.curriculum)
        task = self._makers[drawn.environment](drawn.difficulty, self._seed_of(number))
        self._asked[number] = drawn
        if task is None:  # it makes none that are so hard
            self.scored(number, 0.0, 1)
        return task

    def at(self, source: str, difficulty: int, number: int, seed: int) -> Task | None:
        """A task outside the curriculum, to score on; of `rlve:*`, of one after the other."""
        among = _expand(source)
        return self._makers[among[number % len(among)]](difficulty, hash_of(seed, number))

    def scored(self, number: int, mean: float, tries: int) -> None:
        """Tells how a group was answered; one that was lost tells nothing."""
        drawn = self._asked.pop(number, None)
        if drawn is not None and tries:
            self.curriculum = schedule.score(self.curriculum, drawn, mean, tries)

    def state(self) -> dict[str, Any]:
        """As plain data, with nothing under way."""
        return self.curriculum.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave.

        Raises:
          UserError: it is of other sources, or none.
        """
        found = Curriculum.from_state(state)
        if set(found.records) != set(self._makers):
            raise UserError("the checkpoint's curriculum is of other rl.tasks")
        self.curriculum = found

    def _seed_of(self, number: int) -> int:
        return hash_of(self._seed, number)


def hash_of(seed: int, number: int) -> int:
    """A seed for one task, for libraries that take small ones and count up from them."""
    mixed = (seed + 1) * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9
    mixed ^= mixed >> 29
    return mixed * 0x94D049BB133111EB >> 17 & (1 << _SEED_BITS) - 1


def _maker(source: str) -> Make:
    return _rlve(source) if source.startswith(RLVE) else _gym(source)


@functools.cache
def _expand(source: str) -> tuple[str, ...]:
    if source != f"{RLVE}*":
        return (source,)
    from zaya_jax.rl.environments import rlve

    return tuple(f"{RLVE}{name}" for name in rlve.all_names())


@functools.cache
def _rlve_maker() -> Any:
    """One for all environments: it holds a process."""
    from zaya_jax.rl.environments.rlve import Maker

    maker = Maker(processes=1)
    atexit.register(maker.__exit__)
    return maker


def _rlve(source: str) -> Make:
    from zaya_jax.rl.environments.rlve import Question

    maker = _rlve_maker()
    name = source.removeprefix(RLVE)

    def make(difficulty: int, seed: int) -> Task | None:
        return maker.tasks([Question(name, difficulty, seed)], lenient=True)[0]

    return make


def _gym(source: str) -> Make:
    from zaya_jax.rl.rewards.reasoning_gym import Environment

    name = source.removeprefix(GYM).partition("?")[0]
    parameters = _parameters(source)

    def make(difficulty: int, seed: int) -> Task | None:
        grown = {key: _grown(value, difficulty) for key, value in parameters.items()}
        try:
            return Environment(name, seed=seed, size=1, **grown).task(0)
        except UserError:
            if difficulty == 0:
                raise
            return None  # parameters that it refuses, or a task whose answer it does not know

    make(0, 0)  # mistakes are told before anything is generated
    return make


def _grown(value: Any, difficulty: int) -> Any:
    found = _GROWS.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return value
    first, slope = found.groups()
    return int(first) + int(slope or 1) * difficulty


def _parameters(source: str) -> dict[str, Any]:
    """Of a source of reasoning-gym.

    Raises:
      UserError: they are no JSON object.
    """
    text = source.removeprefix(GYM).partition("?")[2]
    try:
        found = json.loads(text or "{}")
        if not isinstance(found, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise UserError(f"rl.tasks: the parameters in {source!r} are no JSON: {error}") from None
    return found
