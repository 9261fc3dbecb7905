"""Pictures of a curriculum: what is known of a policy, and where its difficulties went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from zaya_jax.rl.curriculum import irt
from zaya_jax.rl.curriculum.schedule import Curriculum

MOST_LINES = 12


def posterior(known: irt.Posterior, title: str = "", width: float = 5.0) -> Figure:
    """Rates of success by difficulty: the posterior's mean and 90% band, and what was seen."""
    figure = Figure(figsize=(width, 0.62 * width), layout="constrained")
    axes = figure.subplots()
    found = irt.estimate(known)
    places = [found.mu, *(difficulty for difficulty, _, _ in known.history)]
    margin = 1 + 3 * found.s
    grid = np.linspace(min(places) - margin, max(places) + margin, 200)
    low, high = _band(known, grid)
    axes.fill_between(grid, low, high, alpha=0.25, label="90% of the posterior")
    axes.plot(grid, irt.expected_rate(known, grid), label="its mean")
    seen: dict[float, np.ndarray] = defaultdict(lambda: np.zeros(2))
    for difficulty, successes, tries in known.history:
        seen[difficulty] += successes, tries
    if seen:
        counts = np.array(list(seen.values()))
        axes.scatter(
            list(seen), counts[:, 0] / counts[:, 1], s=6 + counts[:, 1] / 2, label="seen", zorder=3
        )
    axes.axvline(found.mu, linestyle=":", color="grey")
    axes.axhline(0.5, linestyle=":", color="grey")
    axes.set(
        xlabel="difficulty",
        ylabel="rate of success",
        ylim=(-0.03, 1.03),
        title=title or f"crossing at {found.mu:.2f} ({found.low:.2f} to {found.high:.2f})",
    )
    axes.legend(fontsize="small")
    return figure


def difficulties(
    curriculum: Curriculum, names: Sequence[str] | None = None, width: float = 6.5
) -> Figure:
    """Difficulty of each environment by draws, and how often each was drawn."""
    names = list(names or curriculum.records)
    figure = Figure(figsize=(width, 0.45 * width), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    shown = names[:MOST_LINES]
    for name in shown:
        moves = [(at, d) for at, other, d in curriculum.moves if other == name]
        at, d = zip(*moves, (curriculum.draws, moves[-1][1]), strict=True)
        left.step(at, d, where="post", label=name, linewidth=1)
    rest = "" if len(shown) == len(names) else f", {len(shown)} of {len(names)} environments"
    left.set(xlabel="groups drawn", ylabel="difficulty", title=f"rule: {curriculum.rule}{rest}")
    left.legend(fontsize="x-small")
    counts = [curriculum.records[name].sampled for name in names]
    right.bar(range(len(names)), counts)
    right.set(xlabel="environment", ylabel="groups drawn", xticks=[])
    return figure


def _band(known: irt.Posterior, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[n], [n]: 5% and 95% quantiles of the rate at every difficulty."""
    rates = irt.rate(grid[:, None], known.mu, known.log_s)  # [n, M]
    order = np.argsort(rates, axis=1)
    weights = np.exp(known.log_weights)
    cumulative = np.cumsum((weights / weights.sum())[order], axis=1)
    ranked = np.take_along_axis(rates, order, axis=1)
    rows = np.arange(len(grid))
    low, high = (
        ranked[rows, np.minimum((cumulative < q).sum(axis=1), rates.shape[1] - 1)]
        for q in (0.05, 0.95)
    )
    return low, high
