"""Which fields of a search decide what comes of a trial."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence

from zaya_jax.report.spaces import Axis, Point
from zaya_jax.sweep.measures import LESS
from zaya_jax.sweep.statistics import rank_correlation

LEAST = 8
"""Complete trials below which a share of importance says nothing."""
GOOD = 0.25
"""Share of the trials that count as good ones."""


@dataclasses.dataclass(frozen=True)
class Field:
    """What a search tells of a field.

    Attributes:
      share: of the importance of all fields; None where there are too few trials.
      correlation: Spearman's, of the field with the objective; None of fields without an order.
    """

    path: str
    share: float | None
    correlation: float | None


def of(axes: Mapping[str, Axis], points: Sequence[Point], goal: str) -> list[Field]:
    """The fields, the most important first.

    Importance is PED-ANOVA's (arXiv 2304.10255, in Optuna): how much the values of a field among
    the best quarter of the trials differ from those among all.

    Args:
      goal: `minimize` or `maximize`.
    """
    shares = _shares(axes, points, goal) if len(points) >= LEAST else {}
    found = [
        Field(path, shares.get(path), _correlation(axis, path, points))
        for path, axis in axes.items()
    ]
    return sorted(found, key=lambda field: -(field.share or 0))


def _correlation(axis: Axis, path: str, points: Sequence[Point]) -> float | None:
    x = [point.fields.get(path) for point in points]
    numbers = [v for v in x if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(points) < 3 or len(numbers) < len(x):
        return None
    return rank_correlation(numbers, [point.value for point in points])


def _shares(axes: Mapping[str, Axis], points: Sequence[Point], goal: str) -> dict[str, float]:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def distribution(axis: Axis) -> BaseDistribution:
        # Places from 0 to 1: where the space is logarithmic, so are they.
        if axis.values is None:
            return FloatDistribution(0.0, 1.0)
        return CategoricalDistribution([axis.place(value) for value in axis.names()])

    there = {path: axis for path, axis in axes.items() if _varies(axis, path, points)}
    if not there:
        return {}
    study = optuna.create_study(direction="minimize" if goal == LESS else "maximize")
    for point in points:
        places = {path: axis.place(point.fields.get(path)) for path, axis in there.items()}
        if any(math.isnan(place) for place in places.values()):
            continue
        study.add_trial(
            optuna.trial.create_trial(
                params=places,
                distributions={path: distribution(axis) for path, axis in there.items()},
                value=point.value,
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental
        return get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(target_quantile=GOOD)
        )


def _varies(axis: Axis, path: str, points: Sequence[Point]) -> bool:
    return len({axis.place(point.fields.get(path)) for point in points}) > 1
