"""A verifier from outside: any `module:function(problem, response) -> score`, in processes."""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from zaya_jax.answers.workers import Workers
from zaya_jax.errors import UserError


class ExternalVerifier:
    """Scores responses to one problem; a context manager.

    A call that raises, hangs or returns no number scores nothing (None), with a warning.
    """

    def __init__(self, function: str, problem: str, *, processes: int = 2, seconds: float = 30.0):
        """Args:
          function: `module:function` of two texts, the problem and a response.
          problem: the first of them.
          processes: that run side by side.
          seconds: that a call may take.

        Raises:
          UserError: there is no such function.
        """
        from zaya_jax.config.kinds import check_kind  # brings jax along; a worker needs none

        for mistake in check_kind("--verifier", function, {}):
            raise UserError(mistake)
        self._function, self._problem = function, problem
        self._workers = Workers(f"{__name__}:call", processes=processes, seconds=seconds)

    def __enter__(self) -> ExternalVerifier:
        return self

    def __exit__(self, *error: object) -> None:
        self._workers.close()

    def __call__(self, responses: Sequence[str]) -> list[float | None]:
        asked = [(self._function, self._problem, response) for response in responses]
        scores: list[float | None] = []
        for number, outcome in enumerate(self._workers.map(asked)):
            score = _number(outcome.value) if outcome.failure is None else None
            if score is None:
                why = outcome.message or f"it returned {outcome.value!r:.60}"
                warnings.warn(f"--verifier has no score for rollout {number}: {why}", stacklevel=2)
            scores.append(score)
        return scores


def call(asked: tuple[str, str, str]) -> Any:
    """In a worker: the function's score of a response."""
    function, problem, response = asked
    return _load(function)(problem, response)


@functools.cache
def _load(function: str) -> Callable[[str, str], Any]:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _number(value: Any) -> float | None:
    try:
        score = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return score if math.isfinite(score) else None
