"""The plots of a run over its steps; those of several runs are in `bands`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogFormatter, MaxNLocator

from zaya_jax.report.draw import COLOURS, INK, figure

_MANY_LAYERS = len(COLOURS)


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
    train: tuple[Sequence[int], Sequence[float | None]],
    heldout: tuple[Sequence[int], Sequence[float | None]],
) -> str:
    """Loss of training batches, faint and smoothed, and of the held-out text; (steps, nats).

    None among the nats is a gap.
    """

    def draw(axes: Axes) -> None:
        if train[0]:
            values = np.array(train[1], float)  # None becomes NaN
            axes.plot(train[0], values, alpha=0.3, linewidth=0.7, color=COLOURS[0])
            window = max(len(values) // 25, 1)
            axes.plot(train[0], smooth(values, window), color=COLOURS[0], label="train")
        if heldout[0]:
            values = np.array(heldout[1], float)
            axes.plot(*(heldout[0], values), "o-", ms=4, color=COLOURS[1], label="held out")
        axes.set(xlabel="step", ylabel="nats per token")
        axes.legend()

    return figure("loss", draw)


def load_entropy(steps: Sequence[int], values: np.ndarray) -> str:
    """Entropy of the experts' loads over time; values [N, L], 1 is perfect balance."""

    def draw(axes: Axes) -> None:
        _layers(axes, steps, values)
        axes.axhline(1, color=INK, linewidth=0.6, linestyle=":")
        axes.set(xlabel="step", ylabel="entropy of loads / log E", ylim=(0, 1.03))
        _legend(axes)

    return figure("router load entropy", draw)


def by_layer(name: str, steps: Sequence[int], values: np.ndarray, label: str) -> str:
    """A number of every layer over time; values [N, L]."""

    def draw(axes: Axes) -> None:
        _layers(axes, steps, values)
        axes.set(xlabel="step", ylabel=label)
        _legend(axes)

    return figure(name, draw)


def _legend(axes: Axes) -> None:
    axes.legend(ncols=2, columnspacing=1.0)


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
        _legend(axes)

    return figure(name, draw)


def groups(name: str, steps: Sequence[int], values: Mapping[str, np.ndarray], label: str) -> str:
    """A number of every optimizer group over time, on a logarithmic axis; values [N] by group."""

    def draw(axes: Axes) -> None:
        for group, line in values.items():
            line = np.where(line > 0, line, np.nan)  # a frozen group has no logarithm
            axes.plot(steps, line, linewidth=1.2, label=group)
        axes.set(xlabel="step", ylabel=label, yscale="log")
        axes.yaxis.set_major_formatter(LogFormatter())  # by default it writes maths
        axes.yaxis.set_minor_formatter(LogFormatter())
        _legend(axes)

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
        axes.set_xticks(marks(values.shape[1], most=10))
        _legend(axes)

    return figure("residual norm", draw)


def marks(count: int, most: int = 20) -> np.ndarray:
    """At most that many of 0..count-1, evenly apart."""
    return np.arange(0, count, -(-count // most))
