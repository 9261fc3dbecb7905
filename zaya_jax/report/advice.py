"""What a search says, in sentences made of its numbers: what to use, how sure that is, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from zaya_jax.report import words
from zaya_jax.report.content import flat, listed, mean_and_half, plural, setting
from zaya_jax.report.importance import GOOD, LEAST, Field
from zaya_jax.report.spaces import Axis, Point
from zaya_jax.report.study import Study
from zaya_jax.sweep.measures import MEASURES
from zaya_jax.sweep.record import Trial
from zaya_jax.sweep.statistics import AGREES, Interval, gain, interval, verdict


def of(
    study: Study, axes: Mapping[str, Axis], points: Sequence[Point], fields: Sequence[Field]
) -> list[str]:
    """The paragraphs of a search that has at least one value.

    Args:
      axes: of the fields that have several values, by path.
      points: from the best to the worst.
      fields: from the most to the least important.
    """
    return list(filter(None, [
        _use(study, axes, points),
        _base(study, points),
        _mattered(study, axes, points, fields),
        _beware(study, points),
    ]))  # fmt: skip


def lead(study: Study, best: Point, other: Point) -> Interval | None:
    """How much better one trial is than another, paired by seed; positive is better."""
    values = {t.number: {int(s): v for s, v in t.values.items()} for t in study.trials}
    return gain(values[best.number], values[other.number], MEASURES[study.objective].goal)


def alike(study: Study, points: Sequence[Point]) -> list[Point]:
    """The best trial and those that cannot be told from it."""
    best, *others = points
    return [best, *(p for p in others if verdict(lead(study, best, p)).word != AGREES)]


def _use(study: Study, axes: Mapping[str, Axis], points: Sequence[Point]) -> str:
    best = points[0]
    seen = interval(best.values)
    assert seen is not None
    title = MEASURES[study.objective].title
    line = (
        f"Use {_settings(axes, best)} (trial {best.number}): {title} {words.seeded(seen)}"
        f"{f' over {seen.n} seeds' if seen.n > 1 else ''}, the best of {len(points)} trials; "
        f"{words.better(study.objective)} is better."
    )
    if len(points) < 2:
        return line
    ahead = lead(study, best, points[1])
    if ahead is None:
        return line
    second = f"trial {points[1].number} ({_settings(axes, points[1])})"
    line += f" It is {mean_and_half(ahead)} ahead of the runner-up, {second}"
    if ahead.n < 2:
        return line + "; with one seed nobody knows whether that is more than noise."
    if verdict(ahead).word == AGREES:
        return line + ": more than the seeds differ."
    same = alike(study, points)
    line += f": no more than the seeds differ. {_count(len(same), len(points))}"
    return line + _room(axes, same, points)


def _count(same: int, all_: int) -> str:
    if same == all_:
        return f"None of the {all_ - 1} other trials can be told from the best at 95%"
    return f"{same - 1} of the {all_ - 1} other trials cannot be told from the best at 95%"


def _room(axes: Mapping[str, Axis], same: Sequence[Point], points: Sequence[Point]) -> str:
    """Which values the trials have that are as good as the best."""
    said = []
    for path, axis in axes.items():
        mine = [point.fields[path] for point in same if path in point.fields]
        tried = [point.fields[path] for point in points if path in point.fields]
        if not mine:
            continue
        if all(_is_number(value) for value in tried):
            if min(mine) == min(tried) and max(mine) == max(tried):
                continue
            said.append(f"{axis.label} from {setting(min(mine))} to {setting(max(mine))}")
        elif len(names := dict.fromkeys(map(setting, mine))) < len(set(map(setting, tried))):
            said.append(f"{axis.label} {' or '.join(names)}")
    return f"; they have {listed(said)}." if said else ", whatever their fields."


def _base(study: Study, points: Sequence[Point]) -> str:
    base = flat(study.settings["base"])
    at_base = [
        trial
        for trial in study.trials
        if trial.fields and all(base.get(path) == x for path, x in trial.fields.items())
    ]
    numbers = {trial.number for trial in at_base}
    point = next((point for point in points if point.number in numbers), None)
    if point is None:
        said = _became(at_base[0]) if at_base else "are none of the trials"
        return f"The base's own fields {said}, so the gain over them is not known."
    if point is points[0]:
        return "These are the fields of the base: the search found nothing better."
    ahead = lead(study, points[0], point)
    if ahead is None:
        return ""
    line = f"Over the base's own fields (trial {point.number}) the gain is {mean_and_half(ahead)}"
    if ahead.n < 2:
        return line + ", of one seed."
    found = verdict(ahead)
    if found.word == AGREES:
        return line + ": more than the seeds differ."
    return line + f": no more than the seeds differ; {words.settling(found)}."


def _became(trial: Trial) -> str:
    """What came of a trial without a value."""
    why = f": {trial.reason.rstrip('.')}" if trial.reason else ""
    what = {
        "failed": "failed",
        "pruned": "were given up",
        "invalid": "make no experiment that can be run",
        "complete": "never came to the objective",
    }.get(trial.state, "are not done yet")
    return f"(trial {trial.number}) {what}{why}"


def _mattered(
    study: Study, axes: Mapping[str, Axis], points: Sequence[Point], fields: Sequence[Field]
) -> str:
    if len(points) < LEAST:
        return f"With fewer than {LEAST} values nothing is said of which fields matter."
    said = [
        f"{axes[field.path].label} ({field.share:.0%} of the importance"
        f"{_where(field.path, points)})"
        for field in fields
        if field.share is not None
    ]
    if not said:
        return ""
    then = f", then {listed(said[1:])}" if said[1:] else ""
    if len(alike(study, points)) == len(points):
        return (
            f"What seems to matter most is {said[0]}{then}; but where no trial can be told from "
            "the best, that may be noise."
        )
    return f"What matters most is {said[0]}{then}."


def _where(path: str, points: Sequence[Point]) -> str:
    """Where the good values of a field lie, if that is not everywhere."""
    tried: list[Any] = [p.fields.get(path) for p in points]
    if not all(map(_is_number, tried)):
        return ""
    good = tried[: math.ceil(GOOD * len(points))]  # they come from the best to the worst
    low, high = min(good), max(good)
    if low == min(tried) and high == max(tried):
        return ""
    return f"; {setting(low)} to {setting(high)} in the best quarter of the trials"


def _beware(study: Study, points: Sequence[Point]) -> str:
    said = []
    for path, leaf in study.space.items():
        value = points[0].fields.get(path)
        if isinstance(leaf, dict) and isinstance(value, int | float):
            edge = _edge(value, leaf)
            if edge:
                said.append(f"{path} = {setting(value)} lies at the {edge} of what was searched")
    line = f"Of the best trial, {listed(said)}: better values may lie beyond. " if said else ""
    if len(points) < 2:
        return line.strip()
    return line + (
        f"The best of {plural(len(points), 'trial')} looks better than it is, having been chosen "
        "for looking best: run it once more under other seeds before leaning on its margin."
    )


def _edge(value: float, leaf: dict[str, Any]) -> str:
    low, high = leaf["low"], leaf["high"]
    if leaf.get("log"):
        low, high, value = math.log(low), math.log(high), math.log(value)
    place = (value - low) / (high - low) if high > low else 0.5
    return "lower end" if place < 0.05 else "upper end" if place > 0.95 else ""


def _settings(axes: Mapping[str, Axis], point: Point) -> str:
    return ", ".join(
        f"{axis.label} = {setting(point.fields.get(path))}" for path, axis in axes.items()
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
