"""What can be said of scores: avg@k and pass@k over the tasks of a set, with intervals.

The tasks are taken for a draw from all tasks of their kind; several answers to one task are no
independent evidence about the others. So everything is first averaged within a task, and what
varies is the tasks' means.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from zaya_jax.errors import UserError
from zaya_jax.sweep.statistics import Interval, interval, t_quantile


@dataclasses.dataclass(frozen=True)
class Score:
    """A mean over tasks, from 0 to 1, and its 95% interval.

    Attributes:
      mean: over tasks.
      low: of the interval.
      high: of the interval.
      tasks: n.
    """

    mean: float
    low: float
    high: float
    tasks: int


def avg_at_k(rewards: Sequence[Sequence[float]]) -> Score:
    """The mean reward of an answer.

    Args:
      rewards: of every task, its answers' rewards, from 0 to 1.

    Raises:
      UserError: no tasks, or a task without answers.
    """
    return of_means([math.fsum(task) / len(task) for task in _checked(rewards)])


def pass_at_k(rewards: Sequence[Sequence[float]], k: int) -> Score:
    """How likely at least one of k answers is right, of a task: all marks.

    The unbiased estimate from n >= k answers (Chen et al., 2021).

    Raises:
      UserError: as `avg_at_k`; k is below 1, or above the number of a task's answers.
    """
    fewest = min(map(len, _checked(rewards)))
    if not 1 <= k <= fewest:
        raise UserError(f"pass@{k} needs from 1 to {fewest} answers of each task: k is {k}")
    right = [sum(reward >= 1 for reward in task) for task in rewards]
    return of_means(
        [pass_probability(len(task), c, k) for task, c in zip(rewards, right, strict=True)]
    )


def pass_probability(n: int, c: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k): k of n answers, of which c are right, hold a right one."""
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def of_means(means: Sequence[float]) -> Score:
    """The mean of tasks' means, with Wilson's interval.

    Wilson's stays within 0 and 1 and does not shrink to nothing where all tasks agree. It is for
    yes and no; means vary less, and count for as many of those as have the mean's variance:
    p (1 - p) / (variance of the means / n). Where the means do not vary at all, n.
    """
    n = len(means)
    mean = math.fsum(means) / n
    variance = math.fsum((value - mean) ** 2 for value in means) / max(n - 1, 1) / n
    effective = mean * (1 - mean) / variance if variance > 0 else float(n)
    low, high = wilson(mean, effective, t_quantile(n) if n > 1 else 1.96)
    return Score(mean, low, high, n)


def wilson(p: float, n: float, z: float) -> tuple[float, float]:
    """Wilson's interval of a share p of n, at z standard errors."""
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(0.0, p * (1 - p) / n) + z * z / (4 * n * n))
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))


def difference(
    ours: Mapping[str, Sequence[float]], theirs: Mapping[str, Sequence[float]]
) -> Interval:
    """By how much the mean reward differs, task by task: what both find hard cancels.

    Args:
      ours: rewards by task.
      theirs: likewise, of the same tasks.

    Raises:
      UserError: the tasks are not the same.
    """
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        raise UserError(f"the two were asked different tasks, such as {odd[0]!r}")
    found = interval(
        math.fsum(ours[name]) / len(ours[name]) - math.fsum(theirs[name]) / len(theirs[name])
        for name in ours
    )
    if found is None:
        raise UserError("there are no tasks to compare")
    return found


def _checked(rewards: Sequence[Sequence[float]]) -> Sequence[Sequence[float]]:
    if not rewards:
        raise UserError("there are no tasks to score")
    for number, task in enumerate(rewards):
        if not task:
            raise UserError(f"task {number} has no answers")
        for reward in task:
            if not 0 <= reward <= 1:
                raise UserError(f"task {number} has reward {reward}; it must be from 0 to 1")
    return rewards
