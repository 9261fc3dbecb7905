"""Scores many responses, whatever their verifiers do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zaya_jax.answers.workers import Outcome, Workers
from zaya_jax.config.kinds import check_kind
from zaya_jax.errors import UserError
from zaya_jax.rl.rewards.interface import VERIFIERS, Submission


class Scores(NamedTuple):
    """What became of submissions.

    Attributes:
      rewards: [n] float64 in [0, 1]; NaN where the verifier failed: that rollout is lost, and its
        group goes on without it.
      failures: how many failed, by kind: `raised`, `timeout`, `died`, `unstarted`, `not_a_number`
        or `out_of_range`.
      messages: of failures, at most one of each kind, for people.
    """

    rewards: np.ndarray
    failures: Counter[str]
    messages: dict[str, str]


class Scorer:
    """Verifiers in worker processes, which are started when they are first needed.

    A context manager: leaving it ends the processes.
    """

    def __init__(self, *, processes: int = 2, seconds: float = 10.0):
        """Args:
        processes: for each verifier.
        seconds: that a verifier may take for one response.
        """
        self._processes, self._seconds = processes, seconds
        self._workers: dict[str, Workers] = {}

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        for workers in self._workers.values():
            workers.close()

    def score(self, verifiers: Sequence[str], submissions: Sequence[Submission]) -> Scores:
        """Scores each submission by the verifier of the same place.

        Args:
          verifiers: names of `VERIFIERS`, or `module:function`.
          submissions: responses and what is known of their tasks.

        Raises:
          UserError: an unknown verifier.
        """
        outcomes: list[Outcome] = [Outcome()] * len(submissions)
        for verifier in dict.fromkeys(verifiers):
            places = [i for i, name in enumerate(verifiers) if name == verifier]
            found = self._pool(verifier).map([submissions[i] for i in places])
            for i, outcome in zip(places, found, strict=True):
                outcomes[i] = outcome
        rewards, failures, messages = [], Counter[str](), dict[str, str]()
        for verifier, outcome in zip(verifiers, outcomes, strict=True):
            reward, failure, words = _judge(outcome)
            rewards.append(reward)
            if failure is not None:
                failures[failure] += 1
                messages.setdefault(failure, f"{verifier}: {words}")
        return Scores(np.array(rewards, np.float64), failures, messages)

    def _pool(self, verifier: str) -> Workers:
        if verifier not in self._workers:
            if verifier not in VERIFIERS:  # ours are known to be there, and imported by workers
                for mistake in check_kind("verifier", verifier, VERIFIERS):
                    raise UserError(mistake)
            self._workers[verifier] = Workers(
                VERIFIERS.get(verifier, verifier), processes=self._processes, seconds=self._seconds
            )
        return self._workers[verifier]


def _judge(outcome: Outcome) -> tuple[float, str | None, str]:
    """(reward, kind of failure, words) of what a verifier returned."""
    if outcome.failure is not None:
        return math.nan, outcome.failure, outcome.message
    try:
        reward = float(outcome.value)
    except (TypeError, ValueError, OverflowError):
        return math.nan, "not_a_number", f"returned {outcome.value!r:.60}"
    if math.isnan(reward):
        return math.nan, "not_a_number", "returned NaN"
    if not 0 <= reward <= 1:
        return math.nan, "out_of_range", f"returned {reward:g}; a reward is from 0 to 1"
    return reward, None, ""
