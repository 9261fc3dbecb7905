"""What a page says, apart from how it is written: one content, as HTML and as Markdown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from zaya_jax.sweep.statistics import Interval


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph. kind: plain | lead | note | warning."""

    text: str
    kind: str = "plain"


@dataclasses.dataclass(frozen=True)
class Code:
    """Lines to be copied."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of values; the first of each row is its name.

    Attributes:
      head: names of the columns; without them it is a list of names and values.
    """

    rows: Sequence[Sequence[Any]]
    head: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Figure:
    """A drawing.

    Attributes:
      title: above it.
      svg: an `<svg>` element, see `zaya_jax.report.draw`.
      note: how it is to be read.
      wide: takes the width of the page, where others stand two in a row.
    """

    title: str
    svg: str
    note: str = ""
    wide: bool = False


@dataclasses.dataclass(frozen=True)
class Badge:
    """A cell with a word to be seen first. tone: good | bad | open."""

    word: str
    tone: str


Part = Text | Code | Table | Figure


@dataclasses.dataclass(frozen=True)
class Section:
    """Parts under a heading.

    Attributes:
      folded: opened by a click.
      summary: its first table is what a terminal is told.
    """

    title: str
    parts: Sequence[Part]
    folded: bool = False
    summary: bool = False


@dataclasses.dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
      title: its heading.
      opening: what comes before the first section.
      sections: those without parts are left out.
      results: the same in numbers, for `--json`.
    """

    title: str
    opening: Sequence[Part]
    sections: Sequence[Section]
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def without_gaps(self) -> list[Section]:
        """The sections that have something to show."""
        return [section for section in self.sections if section.parts]


def fields(values: Mapping[str, Any]) -> Table:
    """Names and values."""
    return Table([(name, value) for name, value in values.items()])


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by dotted path."""
    found: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def text(value: Any) -> str:
    """A value as a person reads it: thousands apart, four digits of a fraction."""
    if isinstance(value, Interval):
        return mean_and_half(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return "no number"
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {text(part)}" for name, part in value.items())
    return "none" if value is None else str(value)


def setting(value: Any, exact: bool = False) -> str:
    """A value of a config field as one would type it: digits are not set apart.

    Args:
      exact: with all its digits, for names that are to tell values from each other.
    """
    if isinstance(value, float):
        short = f"{value:.4g}"
        return repr(value) if exact and float(short) != value else short
    if isinstance(value, list | tuple):
        return "(" + ", ".join(setting(x, exact) for x in value) + ")"
    return str(value)


def told_apart(kinds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of choices of fields, by the fields: short where that tells them from each other."""

    def names(exact: bool) -> list[str]:
        return [" ".join(f"{p}={setting(x, exact)}" for p, x in kind.items()) for kind in kinds]

    short, whole = names(exact=False), names(exact=True)
    return [b if short.count(a) > 1 else a for a, b in zip(short, whole, strict=True)]


def mean_and_half(x: Interval, signed: bool = False) -> str:
    """Mean and half-width, to two digits of the half-width: `1.234 ± 0.021`."""
    sign = "+" if signed else ""
    if not math.isfinite(x.half):
        return f"{x.mean:{sign},.4g}" if abs(x.mean) < 1e4 else f"{x.mean:{sign},.0f}"
    if not x.half:
        return f"{x.mean:{sign},.6g} ± 0"
    # The digits of a mean much larger than its spread are worth nothing beyond float32's.
    finest = max(x.half, abs(x.mean) * 1e-6)
    digits = min(max(1 - math.floor(math.log10(finest)), 0), 8)
    return f"{x.mean:{sign},.{digits}f} ± {x.half:.{digits}f}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def plural(count: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def as_lines(page: Page) -> str:
    """What a terminal is told of a page: its opening, and its first table of results."""
    lines = [part.text for part in page.opening if isinstance(part, Text)]
    for section in page.without_gaps():
        tables = [part for part in section.parts if isinstance(part, Table)]
        if section.summary and tables:
            lines += ["", *_columns([list(tables[0].head), *tables[0].rows])]
    return "\n".join(lines)


def _columns(rows: Sequence[Sequence[Any]]) -> list[str]:
    cells = [[v.word if isinstance(v, Badge) else text(v) for v in row] for row in rows if row]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
