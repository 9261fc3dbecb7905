"""Ends a completion that goes round in a circle: what it would still cost helps nobody."""

from __future__ import annotations

import dataclasses

import numpy as np

from zaya_jax.errors import UserError

_MOST = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Repetition:
    """When a completion counts as one that repeats itself.

    longest: tokens of the longest circle that is looked for.
    rounds: how often a circle was gone round in full.
    least: tokens that all rounds have together; short circles (a line of dashes) need more rounds.
    certain: tokens in a row, each of which had a probability above 0.99 (0: not looked at): those
      of a text that is copied. MiniMax-M1 (arXiv 2506.13585) ended completions after 3,000.

    Raises:
      UserError: a value out of its range.
    """

    longest: int = 128
    rounds: int = 4
    least: int = 256
    certain: int = 0

    def __post_init__(self):
        for name, lowest in (("longest", 1), ("rounds", 2), ("least", 1), ("certain", 0)):
            if getattr(self, name) < lowest:
                value = getattr(self, name)
                raise UserError(f"repetition: {name} = {value!r}: expected at least {lowest}")
        for name, highest in (("longest", 2**16), ("rounds", _MOST), ("least", _MOST)):
            if getattr(self, name) > highest:
                value = getattr(self, name)
                raise UserError(f"repetition: {name} = {value!r}: expected at most {highest}")


class Watch:
    """Watches one completion.

    `_run[p - 1]` is the number of tokens up to the last that equal the one p before them.
    """

    def __init__(self, rule: Repetition):
        self._rule = rule
        self._last = np.full(rule.longest, -1, np.int64)  # newest first
        self._run = np.zeros(rule.longest, np.int64)
        periods = np.arange(1, rule.longest + 1)
        self._enough = np.maximum(periods * rule.rounds, rule.least) - periods
        self._sure = 0

    def push(self, token: int, logprob: float) -> bool:
        """Takes the next token; whether the completion repeats itself now."""
        self._run = np.where(self._last == token, self._run + 1, 0)
        self._last[1:] = self._last[:-1]
        self._last[0] = token
        self._sure = self._sure + 1 if logprob > -0.01005 else 0  # log 0.99
        sure = 0 < self._rule.certain <= self._sure
        return sure or bool((self._run >= self._enough).any())
