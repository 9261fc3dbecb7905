"""The page of a search: which fields to use, how sure that is, and which of them matter."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zaya_jax.report import advice, importance, sections, spaces, words
from zaya_jax.report.arms import Arm, short_names
from zaya_jax.report.content import (
    Code,
    Figure,
    Page,
    Part,
    Section,
    Table,
    Text,
    mean_and_half,
    setting,
)
from zaya_jax.report.spaces import Axis, Point
from zaya_jax.report.study import Study
from zaya_jax.sweep.measures import LESS, MEASURES
from zaya_jax.sweep.statistics import interval

BEST = 5
"""So many trials are thick in the plots."""
TABLE = 10
"""So many are in the table of the best."""


def of_study(study: Study) -> Page:
    """The page of a grid, random or TPE search."""
    points = ranked(study)
    axes = axes_of(study, points)
    measure = study.objective
    found = importance.of(axes, points, MEASURES[measure].goal) if points else []
    about = study.settings["about"]
    told = advice.of(study, axes, points, found) if points else ["No trial has a value yet."]
    arms = {point.number: study.arms.get(point.number) for point in points}
    counted = [arm for arm in arms.values() if arm is not None]
    chosen = _chosen(study, points)
    ends = {name: arm for name, arm in chosen.items() if not name.startswith("median")}
    warnings = [*study.problems, *sections.unlike(counted)]
    return Page(
        study.name,
        [
            *([Text(about, "lead")] if about else []),
            *(Text(line) for line in told),
            *(Text(line, "warning") for line in warnings),
        ],
        [
            Section("The best trials", _best(study, axes, points), summary=True),
            Section("All trials with a value", list(_space(study, axes, points, found))),
            Section("What the fields do", list(_fields(study, axes, points, found))),
            Section("The best, the median and the worst trial", list(sections.curves(chosen))),
            sections.loads(ends),
            Section("What was searched", _searched(study)),
            *sections.of_sweep(study),
        ],
        _results(study, points, found, told, warnings),
    )


def ranked(study: Study) -> list[Point]:
    """The complete trials with a value, the best first."""
    sign = 1 if MEASURES[study.objective].goal == LESS else -1
    points = [
        Point(
            trial.number,
            trial.fields,
            trial.value,
            [value for value in trial.values.values() if value is not None] or [trial.value],
        )
        for trial in study.trials
        if trial.state == "complete" and trial.value is not None
    ]
    return sorted(points, key=lambda point: (sign * point.value, point.number))


def axes_of(study: Study, points: Sequence[Point]) -> dict[str, Axis]:
    """An axis for every field of the space, and for what else the trials differ in; none for a
    field that has a single value."""
    space = study.space
    paths = dict.fromkeys([*space, *(path for point in points for path in point.fields)])
    short = short_names(paths)
    found = {}
    for path in paths:
        leaf = space.get(path)
        if isinstance(leaf, Mapping) and {"low", "high"} <= set(leaf):
            log = bool(leaf.get("log"))
            found[path] = Axis(short[path], None, float(leaf["low"]), float(leaf["high"]), log)
        else:
            values = leaf or [point.fields.get(path) for point in points]
            names = tuple(dict.fromkeys(setting(value, exact=True) for value in values))
            if len(names) > 1:
                found[path] = Axis(short[path], names)
    return found


def _best(study: Study, axes: Mapping[str, Axis], points: Sequence[Point]) -> list[Part]:
    if not points:
        return []
    further = [name for name in study.measures if name != study.objective]
    head = [
        "rank",
        "trial",
        *(axis.label for axis in axes.values()),
        words.measure(study.objective),
    ]
    head += ["behind the best, by seed", *map(words.measure, further)]
    rows: list[list[Any]] = []
    for rank, point in enumerate(points[:TABLE]):
        arm = study.arms.get(point.number)
        seen = interval(point.values)
        rows.append(
            [
                rank + 1,
                str(point.number),
                *(setting(point.fields.get(path)) for path in axes),
                words.seeded(seen) if seen else "",
                _behind(study, points[0], point) if rank else "",
                *(words.measured(arm, name) if arm else "no run" for name in further),
            ]
        )
    command = next((t.command for t in study.trials if t.number == points[0].number), "")
    note = (
        "Mean and 95% interval over seeds; the difference to the best trial is paired by seed, and "
        "where its interval reaches zero the two cannot be told apart."
    )
    parts: list[Part] = [Table(rows, head), Text(note, "note")]
    if command:
        parts += [Text("The best one, to be run by itself:"), Code(command)]
    return parts


def _behind(study: Study, best: Point, point: Point) -> str:
    gain = advice.lead(study, best, point)
    return mean_and_half(gain, signed=True) if gain else "no number"


def _space(
    study: Study,
    axes: Mapping[str, Axis],
    points: Sequence[Point],
    found: Sequence[importance.Field],
) -> Iterator[Part]:
    if not points:
        return
    objective = MEASURES[study.objective].title
    low, high = min(p.value for p in points), max(p.value for p in points)
    yield Figure(
        "Parallel coordinates",
        spaces.parallel(axes, Axis(objective, None, low, high), points, min(BEST, len(points))),
        f"A line is a trial, from field to field to its objective; the best {BEST} are thick, the "
        "colour goes from grey (worst) to blue (best).",
        wide=True,
    )
    lost = [trial.number for trial in study.lost]
    yield Figure(
        "History",
        spaces.history(objective, points, lost, MEASURES[study.objective].goal),
        "Trials in the order they were drawn; crosses came to no value.",
    )
    shares = {axes[f.path].label: f.share for f in found if f.share is not None}
    if shares:
        yield Figure(
            "Importance",
            spaces.importances(shares),
            "PED-ANOVA: how much a field's values among the best quarter of the trials differ from "
            "those among all.",
        )


def _fields(
    study: Study,
    axes: Mapping[str, Axis],
    points: Sequence[Point],
    found: Sequence[importance.Field],
) -> Iterator[Part]:
    for field in found:
        note = "Mean over seeds, and from the smallest to the largest of them."
        if field.correlation is not None:
            note += f" Rank correlation {field.correlation:+.2f}."
        yield Figure(
            field.path,
            spaces.scatter(
                f"objective against {field.path}", axes[field.path], field.path,
                MEASURES[study.objective].title, points, min(BEST, len(points)),
            ),
            note,
        )  # fmt: skip


def _chosen(study: Study, points: Sequence[Point]) -> dict[str, Arm]:
    """The best, the median and the worst trial, by what they are."""
    chosen: dict[str, Arm] = {}
    places = {"best": 0, "median": len(points) // 2, "worst": len(points) - 1}
    if len(points) < 3:
        places = dict(zip(places, range(len(points)), strict=False))
    for name, place in places.items():
        arm = study.arms.get(points[place].number) if points else None
        if arm is not None:
            chosen[f"{name} (trial {points[place].number})"] = arm
    return chosen


def _searched(study: Study) -> list[Part]:
    base = sections.base_fields(study)
    rows = []
    for path, leaf in study.space.items():
        if isinstance(leaf, Mapping):
            how = " on a logarithmic scale" if leaf.get("log") else ""
            tried = f"{setting(leaf.get('low'))} to {setting(leaf.get('high'))}{how}"
        else:
            tried = ", ".join(map(setting, leaf))
        rows.append((path, tried, setting(base.get(path))))
    settings = study.settings
    search = f"Search: {settings['search']}; seeds of every trial: " + ", ".join(
        map(str, settings["seeds"])
    )
    if settings["search"] in ("random", "tpe"):
        search += f"; seed of the search: {settings['search_seed']}"
    return [Table(rows, ("field", "values", "in the base")), Text(search + ".", "note")]


def _results(
    study: Study,
    points: Sequence[Point],
    found: Sequence[importance.Field],
    told: Sequence[str],
    warnings: Sequence[str],
) -> dict[str, Any]:
    return {
        "objective": study.objective,
        "best": [
            {
                "trial": point.number,
                "fields": dict(point.fields),
                **(sections.plain(interval(point.values)) or {}),
            }
            for point in points[:TABLE]
        ],
        "fields": [dataclasses.asdict(field) for field in found],
        "in words": list(told),
        "warnings": list(warnings),
    }
