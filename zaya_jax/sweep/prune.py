"""When a run is given up: it falls behind the runs that earlier trials made under the same seed.

The verdict is a function of what the runs wrote. Whether it was looked for while the run went on,
or after its end, comes to the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.trial import TrialState

from zaya_jax.config import Pruning
from zaya_jax.sweep.measures import Goal, Lines, Measure

Points = tuple[tuple[int, float], ...]
"""(step, value of the objective up to there) at the evaluations of a run."""


def points(measure: Measure, lines: Lines) -> Points:
    """The objective at every evaluation of a run, of what the run had written by then."""
    steps = [record["step"] for record in lines.evaluations]
    values = {step: measure(lines.until(step)) for step in steps}
    return tuple((step, value) for step, value in values.items() if value is not None)


def behind(
    pruning: Pruning, goal: Goal, run: Points, others: Sequence[Points]
) -> tuple[int, float] | None:
    """The first point of a run at which it is worse than the median of others; None if none is.

    Optuna's `MedianPruner` decides: the best value of the run so far against the median of the
    others at the same step.

    Args:
      others: of the complete trials that it is compared with, under the same seed.
    """
    if pruning.kind == "none":
        return None
    pruner = optuna.pruners.MedianPruner(pruning.after_trials, pruning.after_step)
    study = optuna.create_study(direction=goal)
    study.add_trials(
        [
            optuna.trial.create_trial(value=other[-1][1], intermediate_values=dict(other))
            for other in others
            if other
        ]
    )
    for i, point in enumerate(run):
        so_far = optuna.trial.create_trial(
            state=TrialState.RUNNING, intermediate_values=dict(run[: i + 1])
        )
        if pruner.prune(study, so_far):
            return point
    return None
