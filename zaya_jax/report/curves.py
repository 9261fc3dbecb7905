"""What the training lines of a run explain: balance, depth, optimizer groups, steps not taken.

A figure is drawn where the lines have its fields; those of an older run may not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from zaya_jax.report import figures
from zaya_jax.report.content import Figure
from zaya_jax.report.run import Run


def drawn(run: Run, topic: str) -> Iterator[Figure]:
    """The figures of a topic, over the steps of the training."""
    if not run.train:
        return
    there = set.intersection(*(set(record) for record in run.train))
    for fields, draw in TOPICS[topic].items():
        if there.issuperset(fields.split()):
            yield from draw(run)


def _column(run: Run, name: str) -> np.ndarray:
    """[N] or [N, L] numbers of a field over the training lines; null is NaN."""
    return np.array([record[name] for record in run.train], float)


def _steps(run: Run) -> list[int]:
    return [record["step"] for record in run.train]


def losses(run: Run) -> Figure:
    """Of the training batches and of the held-out text."""
    train = _steps(run), [r["loss"] for r in run.train]
    heldout = (
        [r["step"] for r in run.evaluations],
        [r.get("heldout_loss") for r in run.evaluations],
    )
    return Figure("Loss", figures.losses(train, heldout), "Training batches, faint and smoothed.")


def _entropy(run: Run) -> Iterator[Figure]:
    yield Figure(
        "Balance of the experts over time",
        figures.load_entropy(_steps(run), _column(run, "load_entropy")),
        "Entropy of the experts' loads in a training batch over its largest value: 1 when every "
        "expert gets the same number of tokens, 0 when one gets all.",
    )


def _loads(run: Run) -> Iterator[Figure]:
    low, high = _column(run, "min_load"), _column(run, "max_load")
    experts = run.config.get("model", {}).get("router", {}).get("experts")
    even = 1 / experts if experts else float("nan")
    yield Figure(
        "Share of the most and the least loaded expert",
        figures.ranges("largest and smallest load", _steps(run), low, high, "share", even),
        f"Of the routed tokens of a batch; the largest solid, the smallest dashed, an even "
        f"share of {even:.3f} dotted.",
    )


def _dead(run: Run) -> Iterator[Figure]:
    dead = _column(run, "dead_experts").sum(1)
    yield Figure(
        "Dead experts",
        figures.counts("dead experts", _steps(run), list(dead), "experts of all layers"),
        "Experts that got less than a tenth of an even share of a batch.",
    )


def _routing(run: Run) -> Iterator[Figure]:
    values = _column(run, "routing_entropy")
    yield Figure(
        "How sure the routers are",
        figures.by_layer("routing entropy", _steps(run), values, "nats"),
        "Mean entropy of a token's own distribution over the experts: near 0 from the start on, a "
        "router has died.",
    )


def _biases(run: Run) -> Iterator[Figure]:
    low, high = _column(run, "min_bias"), _column(run, "max_bias")
    yield Figure(
        "Range of the balancing biases over time",
        figures.ranges("bias range", _steps(run), low, high, "bias", 0.0),
        "Of each layer's experts: the largest solid, the smallest dashed.",
    )


def _residual(run: Run) -> Iterator[Figure]:
    yield Figure(
        "Norm of the residual stream by depth",
        figures.depth(_steps(run), _column(run, "residual_norm")),
        "Mean over tokens, after each layer.",
    )


def _norms(field: str, title: str, note: str) -> Callable[[Run], Iterator[Figure]]:
    def draw(run: Run) -> Iterator[Figure]:
        names = run.train[-1][field]
        values = {
            name: np.array([record[field].get(name) for record in run.train], float)
            for name in names
        }
        yield Figure(title, figures.groups(title.lower(), _steps(run), values, "norm"), note)

    return draw


def _skipped(run: Run) -> Iterator[Figure]:
    skipped = _column(run, "skipped")
    if skipped[-1]:
        yield Figure(
            "Steps not taken",
            figures.counts("steps not taken", _steps(run), list(skipped), "steps, in all"),
            f"Their loss or gradient was no number, or a spike; {run.train[-1]['rollbacks']} "
            "times the run went back to a checkpoint.",
        )


Draw = Callable[[Run], Iterator[Figure]]
TOPICS: dict[str, dict[str, Draw]] = {
    "balance": {
        "load_entropy": _entropy,
        "max_load min_load": _loads,
        "dead_experts": _dead,
        "routing_entropy": _routing,
        "max_bias min_bias": _biases,
    },
    "training": {
        "residual_norm": _residual,
        "grad_norms": _norms(
            "grad_norms", "Gradient norms", "By optimizer group, before clipping."
        ),
        "update_norms": _norms(
            "update_norms",
            "Update norms",
            "By optimizer group, of what a step adds to the parameters.",
        ),
        "skipped rollbacks": _skipped,
    },
}
"""By topic, what draws from which fields of the training lines, in the order of the page."""
