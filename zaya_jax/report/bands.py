"""Plots of several arms: a line is the mean over an arm's seeds, its band all of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from zaya_jax.report.content import text
from zaya_jax.report.draw import COLOURS, INK, figure, tip
from zaya_jax.report.figures import marks
from zaya_jax.sweep.statistics import Interval

LINE_STYLES = ("-", "--", "-.", ":")
SETTLED = 0.2


@dataclasses.dataclass(frozen=True)
class Band:
    """A number of one arm. x: [N] steps or layers; values: [seeds, N]."""

    x: np.ndarray
    values: np.ndarray


def style(position: int) -> dict[str, Any]:
    """Colour and dashes of the arm at a position; arms beyond the colours have other dashes."""
    dashes = LINE_STYLES[position // len(COLOURS) % len(LINE_STYLES)]
    return {"color": COLOURS[position % len(COLOURS)], "linestyle": dashes}


def bands(
    name: str,
    arms: Mapping[str, Band | None],
    x: str,
    y: str,
    limit: float | None = None,
    whole: bool = False,
    fall: bool = False,
) -> str:
    """A line with a band for each arm; None is an arm that keeps its colour and has no line.

    Args:
      x, y: labels of the axes.
      limit: where a dotted line is drawn.
      whole: x are whole numbers from 0, each with a dot.
      fall: the y axis ends at what is reached after `SETTLED` of x, for curves that fall steeply
        at first and are to be told apart at the end.
    """

    def draw(axes: Axes) -> None:
        lines: dict[str, Artist] = {}
        for position, (arm, band) in enumerate(arms.items()):
            if band is None:
                continue
            look = style(position)
            low, high = np.nanmin(band.values, 0), np.nanmax(band.values, 0)
            axes.fill_between(band.x, low, high, color=look["color"], alpha=0.18, linewidth=0)
            dots: dict[str, Any] = {"marker": "o", "markersize": 3} if whole else {}
            (line,) = axes.plot(band.x, np.nanmean(band.values, 0), **look, **dots)
            tip(line, arm)
            lines[arm] = line
        if fall:
            axes.set_ylim(_late(arms, axes.get_ylim()))
        if limit is not None:
            axes.axhline(limit, color=INK, linewidth=0.6, linestyle=":")
        axes.set(xlabel=x, ylabel=y)
        if whole:
            axes.set_xticks(marks(round(max(axes.get_xlim()[1], 1)) + 1, most=10))
            axes.set_xlim(left=-0.3)
        legend(axes, lines)

    return figure(name, draw, height=3.1 + 0.17 * max(_rows(list(arms)) - 2, 0))


def _late(arms: Mapping[str, Band | None], limits: tuple[float, float]) -> tuple[float, float]:
    """Limits of y that hold what comes after `SETTLED` of x."""
    known = [band for band in arms.values() if band is not None]
    start = SETTLED * max(band.x[-1] for band in known)
    late = np.concatenate([band.values[:, band.x >= start].ravel() for band in known])
    low, high = float(np.min(late)), float(np.max(late))
    return (low - 0.08 * (high - low), high + 0.08 * (high - low)) if high > low else limits


def _rows(names: Sequence[str]) -> int:
    return -(-len(names) // _columns(names))


def _columns(names: Sequence[str]) -> int:
    longest = max(map(len, names), default=1)
    return max(min(56 // (longest + 6), 4), 1)


def legend(axes: Axes, drawn: Mapping[str, Artist]) -> None:
    """Above the axes: it hides no line, however many there are."""
    if drawn:
        made = axes.legend(
            list(drawn.values()),
            ["" for _ in drawn],
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=_columns(list(drawn)),
            columnspacing=1.0,
            borderaxespad=0.1,
        )
        # Not as labels: matplotlib leaves out those that begin with "_".
        for place, name in zip(made.get_texts(), drawn, strict=True):
            place.set_text(name)


def intervals(
    name: str,
    arms: Mapping[str, tuple[Interval | None, Mapping[int, float | None], Collection[int]]],
    label: str,
) -> str:
    """A row for each arm: mean and 95% interval in colour, each seed a small ring.

    An interval that is wider than all that was seen is cut off at an arrow: three times the range
    of the seeds is drawn. There is none where a true value is larger than the one that counts.

    Args:
      arms: by name, the interval, the values by seed (None is not known), and the seeds whose
        true value is larger: arrows for rings.
    """
    seen = [v for _, values, _ in arms.values() for v in values.values() if v is not None]
    reach = 1.5 * (max(seen) - min(seen) or abs(seen[0]) * 0.01 or 1.0) if seen else 1.0
    left, right = (min(seen) - reach, max(seen) + reach) if seen else (0.0, 1.0)

    def draw(axes: Axes) -> None:
        for position, (arm, (found, values, larger)) in enumerate(arms.items()):
            colour = style(position)["color"]
            known = {seed: value for seed, value in values.items() if value is not None}
            for seed, value in known.items():
                mark, said = (">", "more than ") if seed in larger else ("o", "")
                (ring,) = axes.plot(
                    value, position + 0.22, mark, ms=4, mfc="none", mec=colour, mew=0.9
                )
                tip(ring, f"{arm}, seed {seed}: {said}{text(float(value))}")
            if found is None:
                axes.text(
                    0.5, position, "no number", transform=axes.get_yaxis_transform(),
                    ha="center", va="center", fontsize=8.5,
                )  # fmt: skip
                continue
            if math.isfinite(found.half) and not larger:
                low, high = max(found.low, left), min(found.high, right)
                axes.plot([low, high], [position] * 2, color=colour, linewidth=2.2, alpha=0.55)
                for end, whole, mark in ((low, found.low, "<"), (high, found.high, ">")):
                    axes.plot(end, position, mark if end != whole else "|", ms=6, color=colour)
            (dot,) = axes.plot(found.mean, position, ">" if larger else "o", ms=6, color=colour)
            tip(dot, f"{arm}: more than {text(found.mean)}" if larger else f"{arm}: {text(found)}")
        axes.set_yticks(range(len(arms)), list(arms))
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.set_xlabel(label)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x", alpha=0.15, color=INK, linewidth=0.6)

    return figure(name, draw, height=0.9 + 0.36 * max(len(arms), 2))
