"""What the training lines of a run explain: balance, depth, optimizer groups, steps not taken.

A section is drawn where the lines have its fields; those of an older run may not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from zaya_jax.report import figures
from zaya_jax.report.run import Run

Section = tuple[str, str, str]
"""Heading, figure, note."""


def sections(run: Run) -> Iterator[Section]:
    """The sections of the page that are drawn over the steps of the training."""
    if not run.train:
        return
    there = set.intersection(*(set(record) for record in run.train))
    for fields, draw in SECTIONS.items():
        if there.issuperset(fields.split()):
            yield from draw(run)


def _column(run: Run, name: str) -> np.ndarray:
    """[N] or [N, L] numbers of a field over the training lines; null is NaN."""
    return np.array([record[name] for record in run.train], float)


def _steps(run: Run) -> list[int]:
    return [record["step"] for record in run.train]


def _entropy(run: Run) -> Iterator[Section]:
    yield (
        "Balance of the experts over time",
        figures.load_entropy(_steps(run), _column(run, "load_entropy")),
        "Entropy of the experts' loads in a training batch over its largest value: 1 when every "
        "expert gets the same number of tokens, 0 when one gets all.",
    )


def _loads(run: Run) -> Iterator[Section]:
    even = 1 / run.experiment.model.router.experts
    low, high = _column(run, "min_load"), _column(run, "max_load")
    yield (
        "Share of the most and the least loaded expert",
        figures.ranges("largest and smallest load", _steps(run), low, high, "share", even),
        f"Of the routed tokens of a batch; the largest solid, the smallest dashed, an even "
        f"share of {even:.3f} dotted.",
    )


def _dead(run: Run) -> Iterator[Section]:
    dead = _column(run, "dead_experts").sum(1)
    yield (
        "Dead experts",
        figures.counts("dead experts", _steps(run), list(dead), "experts of all layers"),
        "Experts that got less than a tenth of an even share of a batch.",
    )


def _routing(run: Run) -> Iterator[Section]:
    values = _column(run, "routing_entropy")
    yield (
        "How sure the routers are",
        figures.by_layer("routing entropy", _steps(run), values, "nats"),
        "Mean entropy of a token's own distribution over the experts: near 0 from the start on, a "
        "router has died.",
    )


def _biases(run: Run) -> Iterator[Section]:
    low, high = _column(run, "min_bias"), _column(run, "max_bias")
    yield (
        "Range of the balancing biases over time",
        figures.ranges("bias range", _steps(run), low, high, "bias", 0.0),
        "Of each layer's experts: the largest solid, the smallest dashed.",
    )


def _residual(run: Run) -> Iterator[Section]:
    yield (
        "Norm of the residual stream by depth",
        figures.depth(_steps(run), _column(run, "residual_norm")),
        "Mean over tokens, after each layer.",
    )


def _norms(field: str, title: str, note: str) -> Callable[[Run], Iterator[Section]]:
    def draw(run: Run) -> Iterator[Section]:
        names = run.train[-1][field]
        values = {
            name: np.array([record[field].get(name) for record in run.train], float)
            for name in names
        }
        yield title, figures.groups(title.lower(), _steps(run), values, "norm"), note

    return draw


def _skipped(run: Run) -> Iterator[Section]:
    skipped = _column(run, "skipped")
    if skipped[-1]:
        yield (
            "Steps not taken",
            figures.counts("steps not taken", _steps(run), list(skipped), "steps, in all"),
            f"Their loss or gradient was no number, or a spike; {run.train[-1]['rollbacks']} "
            "times the run went back to a checkpoint.",
        )


SECTIONS: dict[str, Callable[[Run], Iterator[Section]]] = {
    "load_entropy": _entropy,
    "max_load min_load": _loads,
    "dead_experts": _dead,
    "routing_entropy": _routing,
    "max_bias min_bias": _biases,
    "residual_norm": _residual,
    "grad_norms": _norms("grad_norms", "Gradient norms", "By optimizer group, before clipping."),
    "update_norms": _norms(
        "update_norms", "Update norms", "By optimizer group, of what a step adds to the parameters."
    ),
    "skipped rollbacks": _skipped,
}
"""What draws from which fields of the training lines, in the order of the page."""
