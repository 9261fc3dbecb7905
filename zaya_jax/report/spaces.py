"""Plots of a search: where its trials lie in the space, and what came of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, PercentFormatter

from zaya_jax.report.bands import legend
from zaya_jax.report.content import setting, text
from zaya_jax.report.draw import COLOURS, INK, PAPER, STEPS, WIDE, figure, tip


@dataclasses.dataclass(frozen=True)
class Axis:
    """A field of the space, or the objective, as an axis from 0 to 1.

    Attributes:
      label: short name.
      values: of an axis with one place for each of them; None of a range.
      low, high: of a range. log: on a logarithmic one.
    """

    label: str
    values: tuple[str, ...] | None = None
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    def place(self, value: Any) -> float:
        """Where a value lies; NaN if it has no place."""
        if self.values is not None:
            name = setting(value, exact=True)
            if name not in self.values:
                return math.nan
            return (self.values.index(name) + 0.5) / len(self.values)
        if not isinstance(value, int | float) or (self.log and value <= 0):
            return math.nan
        low, high, x = (map(math.log, (self.low, self.high, value))) if self.log else (
            self.low, self.high, float(value)
        )  # fmt: skip
        return (x - low) / (high - low) if high > low else 0.5

    def names(self) -> tuple[str, ...]:
        """The values of an axis that has a place for each."""
        return self.values or ()

    def ticks(self, most: int = 5) -> tuple[list[float], list[str]]:
        """Places and labels of a few round values."""
        if self.values is not None:
            return [self.place(value) for value in self.values], list(self.values)
        marks = LogLocator(10) if self.log else MaxNLocator(most)
        within = [
            float(v) for v in marks.tick_values(self.low, self.high)
            if self.low * (1 - 1e-9) <= v <= self.high * (1 + 1e-9) or v == self.low
        ]  # fmt: skip
        if self.log and len(within) < 2:
            within = [self.low, math.sqrt(self.low * self.high), self.high]
        return [self.place(v) for v in within], [f"{v:.3g}" for v in within]


@dataclasses.dataclass(frozen=True)
class Point:
    """A complete trial: its number, fields, the objective's mean and its values over seeds."""

    number: int
    fields: Mapping[str, Any]
    value: float
    values: Sequence[float]

    def told(self) -> str:
        settings = ", ".join(f"{path}={setting(x)}" for path, x in self.fields.items())
        return f"trial {self.number}: {text(self.value)}\n{settings}"


def parallel(
    axes_of: Mapping[str, Axis], objective: Axis, points: Sequence[Point], best: int
) -> str:
    """Parallel coordinates: a line is a trial, from field to field to the objective.

    Args:
      axes_of: by path of the field.
      points: from the best to the worst.
      best: so many of them are thick.
    """

    def draw(axes: Axes) -> None:
        lines = list(axes_of.items())
        for rank in reversed(range(len(points))):
            point = points[rank]
            y = [axis.place(point.fields.get(path)) for path, axis in lines]
            y.append(objective.place(point.value))
            # As many curves as gaps: straight lines that meet on an axis cannot be told apart.
            (line,) = axes.plot(
                *_smooth(y),
                color=colour(rank, len(points)),
                linewidth=2.6 if rank < best else 1.1,
                alpha=1 if rank < best else 0.8,
                solid_capstyle="round",
            )
            tip(line, point.told())
        for position, axis in enumerate([*axes_of.values(), objective]):
            axes.axvline(position, color=INK, linewidth=0.8)
            for place, label in zip(*axis.ticks(), strict=True):
                axes.plot([position - 0.012, position], [place] * 2, color=INK, linewidth=0.8)
                axes.text(
                    position - 0.022, place, label, ha="right", va="center", fontsize=9,
                    zorder=5, bbox={"fc": PAPER, "ec": "none", "pad": 0.8, "alpha": 0.85},
                )  # fmt: skip
        labels = [f"{axis.label}{' (log)' if axis.log else ''}" for axis in axes_of.values()]
        axes.set_xticks(range(len(labels) + 1), [*labels, objective.label], fontweight="bold")
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_yticks([])
        axes.set_ylim(-0.04, 1.04)
        axes.set_xlim(-0.25, len(labels) + 0.12)
        axes.spines[:].set_visible(False)

    return figure("parallel coordinates of the trials", draw, height=4.2, width=WIDE)


def colour(rank: int, count: int) -> str:
    """From the page's strongest blue for the best to grey for the worst, by rank."""
    return STEPS[len(STEPS) - 1 - (rank * len(STEPS)) // max(count, 1)]


def _smooth(y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Through the points, level at each of them."""
    t = np.linspace(0, 1, 17)
    ease = t * t * (3 - 2 * t)
    gaps = range(len(y) - 1)
    x = np.concatenate([gap + t for gap in gaps])
    return x, np.concatenate([y[gap] + (y[gap + 1] - y[gap]) * ease for gap in gaps])


def scatter(
    name: str, axis: Axis, path: str, objective: str, points: Sequence[Point], best: int
) -> str:
    """The objective against a field; a bar is from the smallest to the largest over seeds."""

    def draw(axes: Axes) -> None:
        beside: dict[float, int] = {}
        for rank in reversed(range(len(points))):
            point = points[rank]
            x = axis.place(point.fields.get(path))
            if axis.values is not None and math.isfinite(x):
                # Trials of one value stand beside each other.
                beside[x] = beside.get(x, -1) + 1
                x += ((beside[x] * 0.38) % 1 - 0.5) * 0.6 / len(axis.values)
            look = colour(rank, len(points))
            axes.plot([x, x], [min(point.values), max(point.values)], color=look, linewidth=1)
            (dot,) = axes.plot(x, point.value, "o", ms=7 if rank < best else 4.5, color=look)
            tip(dot, point.told())
        places, labels = axis.ticks()
        axes.set_xticks(places, labels)
        axes.set_xlim(-0.03, 1.03)
        axes.set(xlabel=f"{path}{' (log)' if axis.log else ''}", ylabel=objective)

    return figure(name, draw, height=2.9)


def history(objective: str, points: Sequence[Point], lost: Sequence[int], goal: str) -> str:
    """Every trial in the order they were drawn, and the best so far.

    Args:
      lost: numbers of the trials that have no value, as ticks below.
      goal: of the objective, `minimize` or `maximize`.
    """
    drawn = sorted(points, key=lambda point: point.number)
    running = np.maximum if goal == "maximize" else np.minimum

    def draw(axes: Axes) -> None:
        numbers, values = [p.number for p in drawn], [p.value for p in drawn]
        for point in drawn:
            (dot,) = axes.plot(point.number, point.value, "o", ms=4, color=STEPS[2])
            tip(dot, point.told())
        (line,) = axes.step(numbers, running.accumulate(values), where="post", color=COLOURS[0])
        named = {"best so far": line}
        if lost:
            (named["no value"],) = axes.plot(
                lost, [0.02] * len(lost), "x", ms=5, color=COLOURS[1],
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
        axes.set(xlabel="trial", ylabel=objective)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        legend(axes, named)

    return figure("history of the search", draw, height=2.9)


def importances(shares: Mapping[str, float]) -> str:
    """How much of what makes a good trial each field decides, as bars."""

    def draw(axes: Axes) -> None:
        names = list(shares)
        axes.barh(names, [shares[name] for name in names], color=COLOURS[0], height=0.55)
        for place, name in enumerate(names):
            axes.text(shares[name] + 0.015, place, f"{shares[name]:.0%}", va="center", fontsize=9)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1.08), xlabel="share of the importance")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.tick_params(axis="y", length=0)

    return figure("importance of the fields", draw, height=0.9 + 0.34 * max(len(shares), 2))
