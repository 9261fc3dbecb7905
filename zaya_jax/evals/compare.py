"""Evaluations side by side: what each stage or model scores, and by how much it moved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from zaya_jax.errors import UserError
from zaya_jax.evals import statistics
from zaya_jax.evals.scoring import Result

SCORES = "scores.json"


def read(folder: Path) -> dict[str, Result]:
    """The results in an evaluation's directory, by set.

    Raises:
      UserError: there are none.
    """
    try:
        written = json.loads((folder / SCORES).read_text())
        return {result.name: result for result in map(Result.from_record, written["results"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: no finished evaluation: {error}") from None


def table(results: Mapping[str, Mapping[str, Result]]) -> str:
    """A Markdown table: a row for each set, a column for each evaluation.

    The first column is what the others are compared with, task by task, where both were asked the
    same tasks; a difference whose interval reaches zero is in parentheses.

    Args:
      results: by evaluation, by set.
    """
    names = list(results)
    sets = list(dict.fromkeys(name for each in results.values() for name in each))
    rows = [["avg@k, % (95%)", *names]]
    first, *others = (results[name] for name in names)
    for one in sets:
        cells = [_cell(each.get(one), first.get(one)) for each in others]
        rows.append([one, _cell(first.get(one), None), *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def _cell(result: Result | None, base: Result | None) -> str:
    text, change = percent(result), None
    if result is not None and base is not None:
        change = moved(result, base)
    return text if change is None else f"{text} {change}"


def percent(result: Result | None) -> str:
    """Mean and interval, in points; a dash for none."""
    if result is None:
        return "-"
    score = result.avg
    return f"{100 * score.mean:.1f} ({100 * score.low:.1f} to {100 * score.high:.1f})"


def moved(result: Result, base: Result) -> str | None:
    """The difference in points, in parentheses if its interval reaches zero; None if they were not
    asked the same tasks."""
    if result.rewards.keys() != base.rewards.keys():
        return None
    found = statistics.difference(result.rewards, base.rewards)
    change = f"{100 * found.mean:+.1f}"
    return change if found.low > 0 or found.high < 0 else f"({change})"


def summary(results: Sequence[Result]) -> str:
    """What is printed at the end of an evaluation."""
    lines = []
    for result in results:
        samples = sorted({len(rewards) for rewards in result.rewards.values()})
        k = "/".join(map(str, samples))
        lines.append(f"{result.name}: avg@{k} {share(result.avg)} over {result.avg.tasks} tasks")
        for k_passed, score in result.passed.items():
            if k_passed > 1:
                lines.append(f"  pass@{k_passed} {share(score)}")
        for name, value in result.more.items():
            lines.append(f"  {name.replace('_', ' ')} {100 * value:.1f}")
        if result.tokens is not None:
            lines.append(f"  {result.tokens:.0f} tokens an answer, {100 * result.cut:.0f}% cut off")
        for kind, count in result.failures.items():
            lines.append(
                f"  {count} answers count as wrong, their verifier {kind}: {result.messages[kind]}"
            )
        if result.refused:
            task, reasons = next(iter(result.refused.items()))
            count = sum(map(len, result.refused.values()))
            lines.append(
                f"  {count} answers count as wrong, the server refused them, such as that to "
                f"{task!r}: {reasons[0]}"
            )
        if result.overlaps:
            lines.append(f"  {len(result.overlaps)} of its prompts are in the training data")
    return "\n".join(lines)


def share(score: statistics.Score) -> str:
    """Mean and interval, in per cent."""
    return f"{100 * score.mean:.1f}% ({100 * score.low:.1f} to {100 * score.high:.1f})"
