"""Finds where each environment begins for a policy: rounds of asking, before training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from zaya_jax.rl.curriculum import irt
from zaya_jax.rl.curriculum.irt import Estimate, Posterior, Settings

Ask = Callable[[Sequence[tuple[str, int]]], Sequence[int | None]]
"""Asks for a group of rollouts of each (environment, difficulty); how many were right, or None
where that cannot be said."""


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """What is known of a policy in an environment.

    Attributes:
      start: the difficulty to begin training at: an integer, at least 0.
      estimate: of the crossing point, in the environment's difficulties.
      posterior: all of it.
    """

    start: int
    estimate: Estimate
    posterior: Posterior


def calibrate(
    environments: Sequence[str],
    ask: Ask,
    *,
    rounds: int,
    group: int,
    settings: Settings | None = None,
    seed: int = 0,
    highest: Mapping[str, int] | None = None,
) -> dict[str, Calibrated]:
    """Finds, in every environment, the difficulty that a policy solves half of the time.

    All environments share one prior. In a round each is asked about once, so that an engine gets
    them together.

    Args:
      environments: their names.
      ask: gives the outcomes of a round.
      rounds: how many.
      group: G, rollouts for each question.
      settings: of the search.
      seed: of its draws.
      highest: the greatest difficulty that an environment has, where there is one.

    Raises:
      ValueError: `ask` gives another number of outcomes, or one that is none.
    """
    settings = settings or Settings()
    generators = {name: np.random.default_rng((seed, i)) for i, name in enumerate(environments)}
    known = {name: irt.start(settings, generators[name]) for name in environments}
    for _ in range(rounds):
        questions = [
            (name, _level(irt.propose(known[name], settings, generators[name]), name, highest))
            for name in environments
        ]
        for (name, level), right in zip(questions, ask(questions), strict=True):
            if right is not None:
                known[name] = irt.observe(
                    known[name], level, right, group, settings, generators[name]
                )
    return {
        name: Calibrated(_level(found.mu, name, highest), found, known[name])
        for name in environments
        for found in (irt.estimate(known[name]),)
    }


def _level(difficulty: float, name: str, highest: Mapping[str, int] | None) -> int:
    level = max(0, round(difficulty))
    return min(level, highest[name]) if highest and name in highest else level
