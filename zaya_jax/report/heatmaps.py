"""Layers, experts and time as colours: blue below a centre, clear at it, orange above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from zaya_jax.report.draw import INK, WIDE, canvas
from zaya_jax.report.figures import marks

_BELOW, _ABOVE, _UNKNOWN = (37, 99, 235), (234, 88, 12), (128, 128, 128)
_COLUMNS = 8
_GAP = 0.06  # between panels, of their width
_PIXELS = 160  # across a panel of time


def colours(values: np.ndarray, centre: float, reach: float) -> np.ndarray:
    """[..., 4] bytes: clear at `centre`, full at a distance of `reach`, grey where no number.

    A clear centre is the page's own, light or dark.
    """
    known = np.isfinite(values)
    off = np.where(known, (np.nan_to_num(values) - centre) / max(reach, 1e-12), 0)
    rgb = np.where(off[..., None] < 0, _BELOW, _ABOVE)
    rgb = np.where(known[..., None], rgb, _UNKNOWN)
    alpha = np.where(known, np.minimum(np.abs(off), 1), 0.35)
    return np.concatenate([rgb, 255 * alpha[..., None]], -1).round().astype(np.uint8)


def reach_of(values: np.ndarray, centre: float) -> float:
    """The largest distance from the centre, for the scale of colours."""
    off = np.abs(values[np.isfinite(values)] - centre)
    return max(float(np.max(off, initial=0)), 1e-9)


def heatmap(
    name: str, values: np.ndarray, label: str, centre: float, lowest: float | None = None
) -> str:
    """Layers x experts. values: [L, E].

    Colours diverge from `centre`, as far down as up; the scale ends at `lowest`, if that is given.
    """
    rows, columns = values.shape
    reach = reach_of(values, centre)

    def draw(axes: Axes) -> None:
        axes.imshow(colours(values, centre, reach), interpolation="none", aspect="auto")
        axes.set(xlabel="expert", ylabel="layer")
        axes.set_xticks(marks(columns))
        axes.set_yticks(marks(rows))
        _frame(axes)

    def whole(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=[1, 0.04])
        draw(left)
        _scale(right, label, centre, reach, lowest)

    return canvas(name, whole, height=min(max(1.4 + 0.16 * rows, 2.2), 7))


def over_time(
    name: str,
    steps: Sequence[int],
    values: np.ndarray,
    label: str,
    centre: float,
    lowest: float | None = None,
    reach: float | None = None,
) -> str:
    """A panel for each layer: its experts from top to bottom, the steps from left to right.

    Each evaluation holds half way to those before and after it.

    Args:
      steps: [N] of the evaluations.
      values: [N, L, E].
      centre, lowest: see `heatmap`.
      reach: distance from the centre at which colours are full; that of the farthest value by
        default.
    """
    _, layers, experts = values.shape
    most = reach_of(values, centre)
    reach = reach or most
    columns = min(_COLUMNS, layers)
    rows = -(-layers // columns)
    across = np.linspace(steps[0], steps[-1], _PIXELS)
    nearest = np.abs(across[:, None] - np.array(steps)).argmin(1)

    def panels(axes: Axes) -> None:
        """All in one pair of axes: a panel is 1 wide and 1 high, `_GAP` from the next."""
        for layer in range(layers):
            row, column = divmod(layer, columns)
            left, top = column * (1 + _GAP), row * (1 + down)
            axes.imshow(
                colours(values[nearest, layer].T, centre, reach),
                interpolation="none",
                aspect="auto",
                extent=(left, left + 1, top + 1, top),
            )
            axes.add_patch(Rectangle((left, top), 1, 1, fill=False, ec=INK, lw=0.5))
            small: dict[str, Any] = {"fontsize": 9, "va": "bottom"}
            axes.text(left + 0.5, top - 0.03, f"layer {layer}", ha="center", **small)
        for row in range(rows):
            for expert in (0, experts - 1):
                y = row * (1 + down) + (expert + 0.5) / experts
                axes.text(-0.03, y, str(expert), ha="right", va="center", fontsize=8)
        for column in range(columns):
            bottom = (rows if column + (rows - 1) * columns < layers else rows - 1) * (1 + down)
            for x, step, side in ((0, steps[0], "left"), (1, steps[-1], "right")):
                axes.text(
                    column * (1 + _GAP) + x, bottom - down + 0.04, f"{step:,}",
                    ha=side, va="top", fontsize=8,
                )  # fmt: skip
        axes.set_xlim(-0.12, columns * (1 + _GAP) - _GAP)
        axes.set_ylim(rows * (1 + down) - down + 0.25 * down, -down)
        axes.set(xticks=[], yticks=[])
        axes.set_xlabel("step", labelpad=6)
        axes.set_ylabel("expert", labelpad=6)
        axes.spines[:].set_visible(False)

    def whole(figure: Figure) -> None:
        left, right = figure.subplots(1, 2, width_ratios=[1, 0.016])
        panels(left)
        _scale(right, label, centre, reach, lowest, beyond=most > reach)

    panel = 2.0 if rows == 1 else max(0.045 * experts, 0.5)  # inches
    down = 0.24 / panel  # for the title
    return canvas(name, whole, height=0.55 + rows * (panel + 0.24), width=WIDE)


def _scale(
    axes: Axes,
    label: str,
    centre: float,
    reach: float,
    lowest: float | None,
    beyond: bool = False,
) -> None:
    """The scale of colours, as a bar; values may lie beyond its end."""
    low, high = centre - reach if lowest is None else max(lowest, centre - reach), centre + reach
    ramp = np.linspace(high, low, 128)[:, None]
    extent = (0, 1, low, high)
    axes.imshow(colours(ramp, centre, reach), interpolation="none", aspect="auto", extent=extent)
    axes.set_xticks([])
    labels = [f"{low:.3g}", f"{centre:.3g}", f"{'≥ ' if beyond else ''}{high:.3g}"]
    axes.set_yticks([low, centre, high], labels)
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    axes.set_ylabel(label)
    _frame(axes)


def _frame(axes: Axes) -> None:
    axes.spines[:].set(visible=True, linewidth=0.5)
    axes.tick_params(length=2.5, width=0.5)
