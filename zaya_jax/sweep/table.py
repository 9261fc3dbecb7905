"""What a sweep says on the terminal: what it is about to do, how it goes, what came out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from zaya_jax import config, costs
from zaya_jax.config import ConfigError, Experiment, Range, Sweep
from zaya_jax.costs import Costs
from zaya_jax.errors import UserError
from zaya_jax.sweep import draw, plan
from zaya_jax.sweep.measures import MEASURES
from zaya_jax.sweep.record import Trial
from zaya_jax.sweep.statistics import interval

MOST_ROWS = 40


def intro(sweep: Sweep, drawn: Mapping[str, Experiment], workers: int) -> str:
    """The question, the number of runs, and what each arm costs.

    Args:
      drawn: the experiments that are known beforehand, by the name of their trial.
      workers: trials at a time.
    """
    trials, seeds = draw.total(sweep), len(sweep.seeds)
    measure = MEASURES[sweep.objective]
    busy = min(workers, len(draw.batch_of(sweep, 0)))
    title = "" if measure.title == measure.name else f" ({measure.title})"
    lines = [f"{sweep.name}: {sweep.about}" if sweep.about else sweep.name]
    lines += [
        f"{trials} trials ({sweep.search}) x {seeds} seeds {sweep.seeds} = {trials * seeds} runs "
        f"of {sweep.base.train.steps:,} steps, {busy} at a time",
        f"{measure.goal} {measure.name}{title}, mean of the seeds",
    ]
    for path, leaf in config.space(sweep).items():
        lines.append(f"  {path}: {_choice(leaf)}")
    found = dict(_found(drawn))
    lines += _costs(found or {"base": costs.of(sweep.base)})
    lines += [f"warning: {line}" for line in costs.mismatches(found)]
    return "\n".join(lines)


def _found(drawn: Mapping[str, Experiment]) -> Iterator[tuple[str, Costs]]:
    """Costs by name; networks that cannot be built are left out."""
    for name, experiment in drawn.items():
        try:
            yield name, costs.of(experiment)
        except UserError:
            continue  # its trial will say why


def known_beforehand(sweep: Sweep) -> dict[str, Experiment]:
    """The experiments of arms and grids, by name; those that cannot be run are left out."""
    found: dict[str, Experiment] = {}
    if sweep.search not in ("arms", "grid"):
        return found
    for number in range(draw.total(sweep)):
        drawn = draw.draw(sweep, number, [])
        name = drawn.arm or plan.name_of(drawn.fields)
        try:
            found[name] = plan.experiment_of(sweep, drawn.fields, sweep.seeds[0])
        except ConfigError:
            continue  # its trial will say why
    return found


def _choice(leaf: tuple | Range) -> str:
    """What is searched, in words."""
    if isinstance(leaf, Range):
        return f"{leaf.low:g} to {leaf.high:g}{', by its logarithm' if leaf.log else ''}"
    return ", ".join(map(str, leaf))


def _costs(found: Mapping[str, Costs]) -> Iterator[str]:
    head = ["", "parameters", "active", "FLOPs/token", "KV bytes/token"]
    if len(found) > 1 and len(set(found.values())) == 1:
        found = {"all of them": next(iter(found.values()))}
    rows = [
        [
            name,
            f"{cost.parameters:,}",
            f"{cost.active_parameters:,}",
            f"{cost.flops_per_token:,.0f}",
            f"{cost.kv_bytes_per_token:,}",
        ]
        for name, cost in list(found.items())[:MOST_ROWS]
    ]
    yield from aligned([head, *rows])
    if len(found) > MOST_ROWS:
        yield f"... and {len(found) - MOST_ROWS} more"


def results(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """The trials, best first: mean and interval of the objective, and what became of the others."""
    rows = [["trial", "state", sweep.objective, "95% interval", "fields"]]
    for trial in ranked(sweep, trials):
        values = [value for value in trial.values.values() if value is not None]
        mean, spread = "", ""
        if trial.value is not None:
            mean, spread = f"{trial.value:.5g}", half(values)
        elif trial.state == "complete":
            mean = f"not reached ({len(trial.values) - len(values)} of {len(trial.values)})"
        rows.append([str(trial.number), trial.state, mean, spread, trial.name])
    lines = list(aligned(rows))
    for trial in trials:
        if trial.reason:
            lines.append(f"trial {trial.number} is {trial.state}: {trial.reason}")
    return "\n".join(lines)


def ranked(sweep: Sweep, trials: Sequence[Trial]) -> list[Trial]:
    """Best first; those without a value last, by number."""
    sign = -1 if MEASURES[sweep.objective].goal == "maximize" else 1

    def key(trial: Trial) -> tuple[float, int]:
        return (math.inf if trial.value is None else sign * trial.value, trial.number)

    return sorted(trials, key=key)


def half(values: Sequence[float]) -> str:
    """Half the width of the 95% interval of the mean, as `+- 0.012`; nothing of a single value."""
    found = interval(values)
    return "" if found is None or found.n < 2 else f"+- {found.half:.2g}"


def aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of text in columns; numbers to the right, the first and the last column to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1
    for row in rows:
        cells = [
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "  ".join(cells).rstrip()
