"""The plots of a run, as SVG text that takes its ink from the page it stands on.

Axes and letters are drawn in `INK`, which becomes the page's `currentColor`: one figure serves
light and dark pages. Lines have colours that stand out on both.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler

matplotlib.use("svg")

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.colors import TwoSlopeNorm  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

INK = "#010203"
COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#eab308", "#06b6d4", "#ec4899")
_MANY_LAYERS = len(COLOURS)

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters: small, and in the page's own font
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "axes.prop_cycle": cycler(color=COLOURS),
}


def figure(name: str, draw: Callable[[Axes], None], height: float = 3.4) -> str:
    """An `<svg>` element.

    Args:
      name: makes ids inside the SVG differ from those of other figures on the page.
      draw: draws on the axes it is given.
      height: in inches, of a width of 6.4.
    """
    with plt.rc_context({**_STYLE, "svg.hashsalt": name}):
        canvas, axes = plt.subplots(figsize=(6.4, height), layout="constrained")
        draw(axes)
        text = io.StringIO()
        canvas.savefig(text, format="svg", transparent=True, metadata={"Date": None})
        plt.close(canvas)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Sized by the page: the width and height in points give way to the viewBox.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    label = rf'\1 role="img" aria-label="{name}"'
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', label, svg, count=1)
    return svg


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over those of the last `window` values (fewer at the beginning) that are numbers."""
    known = np.isfinite(values)
    end = np.arange(1, len(values) + 1)
    start = np.maximum(end - window, 0)

    def trailing(x: np.ndarray) -> np.ndarray:
        sums = np.concatenate([[0.0], np.cumsum(x)])
        return sums[end] - sums[start]

    with np.errstate(invalid="ignore"):  # a window without numbers has no mean
        return trailing(np.where(known, values, 0)) / trailing(known)


def losses(
    train: tuple[Sequence[int], Sequence[float]], heldout: tuple[Sequence[int], Sequence[float]]
) -> str:
    """Loss of training batches, faint and smoothed, and of the held-out text; (steps, nats).

    None among the nats is a gap.
    """

    def draw(axes: Axes) -> None:
        if train[0]:
            values = np.array(train[1], float)  # None becomes NaN
            axes.plot(train[0], values, alpha=0.25, linewidth=0.8, color=COLOURS[0])
            window = max(len(values) // 25, 1)
            axes.plot(train[0], smooth(values, window), color=COLOURS[0], label="train")
        axes.plot(heldout[0], np.array(heldout[1], float), "o-", color=COLOURS[1], label="held out")
        axes.set(xlabel="step", ylabel="nats per token")
        axes.legend()

    return figure("loss", draw)


def load_entropy(steps: Sequence[int], values: np.ndarray) -> str:
    """Entropy of the experts' loads over time; values [N, L], 1 is perfect balance."""

    def draw(axes: Axes) -> None:
        _layers(axes, steps, values)
        axes.axhline(1, color=INK, linewidth=0.6, linestyle=":")
        axes.set(xlabel="step", ylabel="entropy of loads / log E", ylim=(0, 1.03))
        axes.legend(loc="lower right", ncols=2)

    return figure("router load entropy", draw)


def by_layer(name: str, steps: Sequence[int], values: np.ndarray, label: str) -> str:
    """A number of every layer over time; values [N, L]."""

    def draw(axes: Axes) -> None:
        _layers(axes, steps, values)
        axes.set(xlabel="step", ylabel=label)
        axes.legend(ncols=2)

    return figure(name, draw)


def _layers(axes: Axes, steps: Sequence[int], values: np.ndarray) -> None:
    """A line for each layer, or their mean and range where they are many."""
    if values.shape[1] <= _MANY_LAYERS:
        for layer in range(values.shape[1]):
            axes.plot(steps, values[:, layer], linewidth=1.2, label=f"layer {layer}")
    else:
        axes.fill_between(steps, values.min(1), values.max(1), alpha=0.2, label="all layers")
        axes.plot(steps, values.mean(1), label="mean")


def ranges(
    name: str, steps: Sequence[int], low: np.ndarray, high: np.ndarray, label: str, even: float
) -> str:
    """From the smallest to the largest number of each layer over time.

    Args:
      low, high: [N, L].
      even: where both would be if all were the same; a dotted line.
    """

    def draw(axes: Axes) -> None:
        if low.shape[1] <= _MANY_LAYERS:
            for layer, colour in zip(range(low.shape[1]), COLOURS, strict=False):
                axes.plot(
                    steps, high[:, layer], color=colour, linewidth=1.2, label=f"layer {layer}"
                )
                axes.plot(steps, low[:, layer], color=colour, linewidth=1.2, linestyle="--")
        else:
            axes.fill_between(steps, low.min(1), high.max(1), alpha=0.2, label="all layers")
            axes.plot(steps, high.mean(1), color=COLOURS[0], label="mean over layers")
            axes.plot(steps, low.mean(1), color=COLOURS[0], linestyle="--")
        axes.axhline(even, color=INK, linewidth=0.6, linestyle=":")
        axes.set(xlabel="step", ylabel=label)
        axes.legend(ncols=2)

    return figure(name, draw)


def groups(name: str, steps: Sequence[int], values: Mapping[str, np.ndarray], label: str) -> str:
    """A number of every optimizer group over time, on a logarithmic axis; values [N] by group."""

    def draw(axes: Axes) -> None:
        for group, line in values.items():
            line = np.where(line > 0, line, np.nan)  # a frozen group has no logarithm
            axes.plot(steps, line, linewidth=1.2, label=group)
        axes.set(xlabel="step", ylabel=label, yscale="log")
        axes.legend(ncols=2)

    return figure(name, draw)


def counts(name: str, steps: Sequence[int], values: Sequence[float], label: str) -> str:
    """A count over time, as steps from one line to the next."""

    def draw(axes: Axes) -> None:
        axes.step(steps, values, where="post")
        axes.set(xlabel="step", ylabel=label)
        axes.set_ylim(0, max(1.0, float(np.max(values, initial=0))) * 1.05)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))

    return figure(name, draw)


def depth(steps: Sequence[int], values: np.ndarray) -> str:
    """Norm of the residual stream after each layer, at a few steps from first to last.

    values: [N, L].
    """

    def draw(axes: Axes) -> None:
        chosen = dict.fromkeys(np.linspace(0, len(steps) - 1, 5).round().astype(int))
        for row in chosen:
            axes.plot(values[row], "o-", markersize=3, linewidth=1.2, label=f"step {steps[row]:,}")
        axes.set(xlabel="layer", ylabel="norm of the residual stream")
        axes.set_xticks(_marks(values.shape[1]))
        axes.legend(ncols=2)

    return figure("residual norm", draw)


def heatmap(
    name: str, values: np.ndarray, label: str, centre: float, lowest: float | None = None
) -> str:
    """Layers x experts. values: [L, E].

    Colours diverge from `centre`, as far down as up, or down to `lowest`.
    """

    def draw(axes: Axes) -> None:
        reach = max(float(np.nanmax(np.abs(values - centre), initial=0)), 1e-9)
        bottom = centre - reach if lowest is None else lowest
        norm = TwoSlopeNorm(centre, bottom, centre + reach)
        mesh = axes.pcolormesh(values, cmap="RdBu_r", norm=norm)
        axes.set(xlabel="expert", ylabel="layer")
        rows, columns = values.shape
        axes.set_xticks(_marks(columns) + 0.5, [str(i) for i in _marks(columns)])
        axes.set_yticks(_marks(rows) + 0.5, [str(i) for i in _marks(rows)])
        axes.invert_yaxis()
        bar = axes.figure.colorbar(mesh, ax=axes, label=label)
        bar.ax.set_yscale("linear")
        bar.outline.set_visible(False)

    return figure(name, draw, height=min(1.6 + 0.28 * len(values), 9))


def _marks(count: int) -> np.ndarray:
    """At most twenty of 0..count-1, evenly apart."""
    return np.arange(0, count, -(-count // 20))
