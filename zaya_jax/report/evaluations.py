"""A page of evaluations beside each other, in the order given: stages of a cascade, or models.

The report's table IX, with intervals: a row for each set, a column for each evaluation, and what
moved since the one before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zaya_jax.evals import compare
from zaya_jax.report.bands import legend
from zaya_jax.report.content import Figure, Page, Section, Table, Text
from zaya_jax.report.draw import COLOURS, figure, tip

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

    from zaya_jax.evals.scoring import Result

Results = Mapping[str, Mapping[str, "Result"]]
"""By evaluation, by set."""


def is_evaluation(folder: Path) -> bool:
    """Whether `launch.py eval` has finished there."""
    return (folder / compare.SCORES).is_file()


def of(folders: Sequence[Path]) -> Page:
    """The page of finished evaluations.

    Raises:
      UserError: one is not finished, or damaged.
    """
    results = {folder.name: compare.read(folder) for folder in folders}
    if len(results) < len(folders):  # of one name: told apart by their paths
        results = {str(folder): compare.read(folder) for folder in folders}
    names = list(results)
    sets = list(dict.fromkeys(name for each in results.values() for name in each))
    first, last = results[names[0]], results[names[-1]]
    lead = "; ".join(
        f"{name} {first[name].avg.mean:.1%} to {last[name].avg.mean:.1%}"
        for name in sets
        if name in first and name in last
    )
    steps = [
        [name, *(_moved(results[a].get(name), results[b].get(name)) for a, b in _pairs(names))]
        for name in sets
    ]
    return Page(
        f"{len(names)} evaluations",
        [Text(lead or "no set is in the first and the last of them", "lead")],
        [
            Section(
                "Scores",
                [
                    Table(
                        [[s, *(compare.percent(results[n].get(s)) for n in names)] for s in sets],
                        ["avg@k", *names],
                    ),
                    Text("Means over tasks, with their 95% interval.", "note"),
                    *_figures(results, sets),
                ],
                summary=True,
            ),
            Section(
                "What each changed",
                [
                    Table(steps, ["points", *(b for _, b in _pairs(names))]),
                    Text(
                        "Since the evaluation before it, paired by task; in parentheses if the 95% "
                        "interval of the difference reaches zero. A dash: not the same tasks.",
                        "note",
                    ),
                ]
                if len(names) > 1
                else [],
            ),
            Section("Best of k", _passed(results, sets)),
            Section("Answers", [Table(_answers(results, sets), _ANSWERS)]),
        ],
        {name: {s: r.avg.mean for s, r in found.items()} for name, found in results.items()},
    )


_ANSWERS = (
    "set", "evaluation", "tasks", "tokens", "cut off", "refused", "failed verifiers", "in training"
)  # fmt: skip


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(names, names[1:], strict=False))


def _moved(before: Result | None, after: Result | None) -> str:
    moved = None if before is None or after is None else compare.moved(after, before)
    return moved or "-"


def _figures(results: Results, sets: Sequence[str]) -> list[Figure]:
    """A line for each set over the evaluations, with its intervals."""
    if len(results) < 2:
        return []

    def draw(axes: Axes) -> None:
        lines: dict[str, Artist] = {}
        for number, name in enumerate(sets):
            known = [(i, r[name].avg) for i, r in enumerate(results.values()) if name in r]
            at = [i + 0.04 * (number - len(sets) / 2) for i, _ in known]
            means = [score.mean for _, score in known]
            spans = [
                [score.mean - score.low for _, score in known],
                [score.high - score.mean for _, score in known],
            ]
            drawn = axes.errorbar(
                at, means, yerr=spans, marker="o", markersize=3, capsize=2,
                color=COLOURS[number % len(COLOURS)],
            )  # fmt: skip
            tip(drawn.lines[0], name)
            lines[name] = drawn.lines[0]
        axes.set_xticks(range(len(results)), list(results))
        axes.set(ylabel="avg@k", ylim=(-0.02, 1.02))
        legend(axes, lines)

    return [Figure("Scores by evaluation", figure("scores by evaluation", draw), wide=True)]


def _passed(results: Results, sets: Sequence[str]) -> list[Table]:
    rows = [
        [f"{name}, {evaluation}, pass@{k}", compare.share(score)]
        for name in sets
        for evaluation, found in results.items()
        if name in found
        for k, score in found[name].passed.items()
        if k > 1
    ]
    return [Table(rows)] if rows else []


def _answers(results: Results, sets: Sequence[str]) -> list[list[str]]:
    return [
        [
            name,
            evaluation,
            str(one.avg.tasks),
            "-" if one.tokens is None else f"{one.tokens:.0f}",
            f"{one.cut:.0%}",
            str(sum(map(len, one.refused.values()))),
            str(sum(one.failures.values())),
            str(len(one.overlaps)),
        ]
        for name in sets
        for evaluation, found in results.items()
        if (one := found.get(name)) is not None
    ]
