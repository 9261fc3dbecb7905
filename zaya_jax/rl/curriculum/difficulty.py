"""How the difficulty of an environment moves while a policy learns in it: one rule, one function.

Each takes a record of the environment and the outcome of one group of rollouts, and gives the new
record. A group was asked at the difficulty of its time; until it is scored, that may have moved.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

from zaya_jax.errors import UserError

RAISE_ABOVE = 0.7
"""Equation 11: a group with a higher mean reward raises the difficulty."""
RLVE_RAISE_AT, RLVE_WINDOW, RLVE_PROMPTS = 0.9, 4, 8


@dataclasses.dataclass(frozen=True)
class Record:
    """An environment in a curriculum.

    Attributes:
      difficulty: d, at least 0: the next task's, or the greatest that is asked.
      sampled: n, how many groups were drawn.
      scored: how many were scored.
      stale: how many of these were asked at another difficulty than was then current.
      raised: how often d went up.
      lowered: how often it went down.
      solved: of the rule `rlve`: correct rollouts at d since it was last looked at.
      tried: of the rule `rlve`: rollouts at d since then.
    """

    difficulty: int = 0
    sampled: int = 0
    scored: int = 0
    stale: int = 0
    raised: int = 0
    lowered: int = 0
    solved: float = 0.0
    tried: int = 0


Rule = Callable[[Record, int, float, int], Record]


def report_rule(record: Record, asked: int, mean: float, tries: int) -> Record:
    """Equation 11, for groups that were asked at the current difficulty; others change nothing.

    One more if the mean reward is above 0.7, one less if it is 0, never below 0. The equation as
    it is printed wants the current difficulty only of a group that raises, the text beside it of
    both; with many groups under way, the first of some failures would be followed by all others,
    each lowering again for the same reason. So the text is followed here.
    """
    current = asked == record.difficulty
    if current and mean > RAISE_ABOVE:
        return _moved(record, +1)
    if current and mean == 0:
        return _moved(record, -1)
    return record


def printed_rule(record: Record, asked: int, mean: float, tries: int) -> Record:
    """Equation 11 to the letter: a group without any reward lowers, whenever it was asked."""
    if mean == 0:
        return _moved(record, -1)
    return report_rule(record, asked, mean, tries)


def rlve_rule(record: Record, asked: int, mean: float, tries: int) -> Record:
    """RLVE's own rule, to compare with: up at 90% of enough rollouts at d, never down."""
    if asked != record.difficulty:
        return record
    solved, tried = record.solved + mean * tries, record.tried + tries
    if tried < RLVE_PROMPTS * tries:
        return dataclasses.replace(record, solved=solved, tried=tried)
    kept = dataclasses.replace(record, solved=0.0, tried=0)
    return _moved(kept, +1) if solved / tried >= RLVE_RAISE_AT else kept


def fixed_rule(record: Record, asked: int, mean: float, tries: int) -> Record:
    """Nothing moves it."""
    return record


RULES: Mapping[str, Rule] = {
    "report": report_rule,
    "printed": printed_rule,
    "rlve": rlve_rule,
    "fixed": fixed_rule,
}


def scored(record: Record, rule: Rule, asked: int, mean: float, tries: int) -> Record:
    """The record after a group was scored.

    Args:
      record: before.
      rule: of `RULES`.
      asked: the group's difficulty.
      mean: of its rewards, from 0 to 1.
      tries: G.

    Raises:
      UserError: a mean that is not from 0 to 1.
    """
    if not (math.isfinite(mean) and 0 <= mean <= 1):
        raise UserError(f"a group's mean reward is {mean}; the curriculum needs one from 0 to 1")
    after = rule(record, asked, mean, tries)
    return dataclasses.replace(
        after,
        scored=record.scored + 1,
        stale=record.stale + (asked != record.difficulty),
    )


def _moved(record: Record, by: int) -> Record:
    difficulty = max(0, record.difficulty + by)
    return dataclasses.replace(
        record,
        difficulty=difficulty,
        raised=record.raised + (difficulty > record.difficulty),
        lowered=record.lowered + (difficulty < record.difficulty),
    )
