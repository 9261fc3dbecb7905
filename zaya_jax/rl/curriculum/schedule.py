"""Which environment is asked next, and at which difficulty: the curriculum's whole state.

The state is plain data, and every draw a function of it and of a seed: a run that was killed goes
on with the very tasks that it would have asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from zaya_jax.errors import UserError, hint
from zaya_jax.rl.curriculum.difficulty import RLVE_WINDOW, RULES, Record, scored


class Draw(NamedTuple):
    """What to ask next.

    Attributes:
      environment: its name.
      difficulty: of the task.
      number: of the draw, from 0: together with the seed, it tells the task from all others.
    """

    environment: str
    difficulty: int
    number: int


@dataclasses.dataclass(frozen=True)
class Curriculum:
    """Environments and where a policy stands in each.

    Attributes:
      records: by environment.
      rule: of `RULES`.
      seed: of all draws.
      draws: how many there were.
      moves: (draw, environment, difficulty) of the start and of every change of difficulty, to be
        plotted.
    """

    records: Mapping[str, Record]
    rule: str = "report"
    seed: int = 0
    draws: int = 0
    moves: tuple[tuple[int, str, int], ...] = ()

    def state(self) -> dict[str, Any]:
        """As plain data."""
        return dataclasses.asdict(self) | {"moves": [list(move) for move in self.moves]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Curriculum:
        """What `state` gave.

        Raises:
          UserError: it did not; names the field.
        """
        try:
            return cls(
                records={name: Record(**record) for name, record in state["records"].items()},
                rule=_known(state["rule"]),
                seed=int(state["seed"]),
                draws=int(state["draws"]),
                moves=tuple((int(at), str(name), int(d)) for at, name, d in state["moves"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"no state of a curriculum: {type(error).__name__}: {error}") from None


def start(
    environments: Iterable[str] | Mapping[str, int], *, rule: str = "report", seed: int = 0
) -> Curriculum:
    """A curriculum at its beginning.

    Args:
      environments: their names; or with the difficulty of each to begin at, else 0.
      rule: how difficulties move: of `RULES`.
      seed: of all draws.

    Raises:
      UserError: no environments, one twice, a negative difficulty, an unknown rule.
    """
    given = list(environments)
    begin = dict(environments) if isinstance(environments, Mapping) else dict.fromkeys(given, 0)
    if not begin:
        raise UserError("a curriculum needs at least one environment")
    if len(begin) < len(given):
        twice = next(name for name in given if given.count(name) > 1)
        raise UserError(f"environment {twice!r} is in the curriculum twice")
    for name, difficulty in begin.items():
        if isinstance(difficulty, bool) or not isinstance(difficulty, int) or difficulty < 0:
            raise UserError(
                f"environment {name!r} begins at difficulty {difficulty!r}; it must be an integer, "
                "at least 0"
            )
    records = {name: Record(difficulty=difficulty) for name, difficulty in begin.items()}
    moves = tuple((0, name, difficulty) for name, difficulty in begin.items())
    return Curriculum(records, _known(rule), seed, moves=moves)


def shares(curriculum: Curriculum) -> dict[str, float]:
    """How likely each environment is to be drawn: proportional to 1 / (1 + groups drawn so far).

    The report says that environments sampled least have the largest weight, and no formula.
    """
    weights = {name: 1 / (1 + record.sampled) for name, record in curriculum.records.items()}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def draw(curriculum: Curriculum) -> tuple[Draw, Curriculum]:
    """What to ask next, and the curriculum after it was drawn."""
    generator = np.random.default_rng((curriculum.seed, curriculum.draws))
    chances = shares(curriculum)
    name = str(list(chances)[generator.choice(len(chances), p=list(chances.values()))])
    record = curriculum.records[name]
    difficulty = record.difficulty
    if curriculum.rule == "rlve":  # uniform in its last levels
        difficulty -= int(generator.integers(min(RLVE_WINDOW, difficulty + 1)))
    drawn = dataclasses.replace(record, sampled=record.sampled + 1)
    after = dataclasses.replace(
        curriculum,
        records={**curriculum.records, name: drawn},
        draws=curriculum.draws + 1,
    )
    return Draw(name, difficulty, curriculum.draws), after


def score(curriculum: Curriculum, asked: Draw, mean: float, tries: int) -> Curriculum:
    """The curriculum after a group was scored; in any order, and however late.

    Args:
      curriculum: before.
      asked: what was drawn for the group.
      mean: of the group's rewards, from 0 to 1.
      tries: G, rollouts in the group.

    Raises:
      UserError: an environment that is not in it; a mean that is not from 0 to 1.
    """
    name = asked.environment
    if name not in curriculum.records:
        raise UserError(f"no environment {name!r}{hint(name, curriculum.records)}")
    before = curriculum.records[name]
    after = scored(before, RULES[curriculum.rule], asked.difficulty, mean, tries)
    moves = curriculum.moves
    if after.difficulty != before.difficulty:
        moves = (*moves, (curriculum.draws, name, after.difficulty))
    return dataclasses.replace(curriculum, records={**curriculum.records, name: after}, moves=moves)


def metrics(curriculum: Curriculum) -> dict[str, float]:
    """Numbers to log: difficulties and how evenly environments were drawn."""
    records = list(curriculum.records.values())
    difficulties = [record.difficulty for record in records]
    counts = [record.sampled for record in records]
    scored_groups = sum(record.scored for record in records)
    return {
        "difficulty_mean": float(np.mean(difficulties)),
        "difficulty_max": float(max(difficulties)),
        "difficulty_raised": float(sum(record.raised for record in records)),
        "difficulty_lowered": float(sum(record.lowered for record in records)),
        "environments_sampled": float(sum(count > 0 for count in counts)),
        "stale_share": sum(record.stale for record in records) / max(1, scored_groups),
    }


def _known(rule: str) -> str:
    if rule not in RULES:
        raise UserError(f"no rule {rule!r} of difficulty{hint(str(rule), RULES)}")
    return rule
