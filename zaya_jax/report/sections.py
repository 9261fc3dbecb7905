"""Sections that the pages of comparisons and of searches share."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from zaya_jax.report.arms import Arm, band, over_steps
from zaya_jax.report.bands import SETTLED, Band, bands
from zaya_jax.report.content import (
    Code,
    Figure,
    Part,
    Section,
    Table,
    Text,
    fields,
    flat,
    plural,
    setting,
)
from zaya_jax.report.figures import smooth
from zaya_jax.report.page import over_time
from zaya_jax.report.page import place as ran_on
from zaya_jax.report.run import Run, column
from zaya_jax.report.study import Study
from zaya_jax.sweep.statistics import Interval

CUT = f"The axis ends at what is reached after {SETTLED:.0%} of the steps."
ASKED = (
    ("Held-out tasks right", "heldout_accuracy", "share"),
    ("Sampled answers right", "reward", "share"),
    ("Tokens of an answer", "heldout_length", "tokens"),
    ("KL of generation from trainer", "kl", "nats a token"),
    ("Entropy of the policy", "entropy", "nats a token"),
)
"""Of arms that are stages of reinforcement learning: title, field, axis."""
LINE_AND_BAND = f"Line: mean over seeds; band: from the smallest to the largest of them. {CUT}"


def curves(arms: Mapping[str, Arm]) -> Iterator[Figure]:
    """Curves of arms over steps and depth; arms that lack one are left out of it."""
    for title, y, curve, note in (
        ("Held-out loss", "nats per token", over_steps("heldout_loss"), LINE_AND_BAND),
        ("Training loss", "nats per target", _smooth_loss, f"Smoothed. {CUT}"),
    ):
        found = {name: band(arm, curve) for name, arm in arms.items()}
        if any(found.values()):
            yield Figure(title, bands(title.lower(), found, "step", y, fall=True), note)
    for title, field, y in ASKED:
        yield from _drawn(arms, title, field, y, "Line: mean over seeds; band: all of them.")
    if any(has_choices(run) for arm in arms.values() for run in arm.runs.values()):
        yield from _balance(arms)
    found = {name: band(arm, _depth) for name, arm in arms.items()}
    if any(found.values()):
        yield Figure(
            "Norm of the residual stream by depth",
            bands("residual norm by depth", found, "layer", "norm", whole=True),
            "After each layer, mean of tokens and of the last tenth of the training lines.",
        )


def loads(arms: Mapping[str, Arm]) -> Section:
    """Layers x experts over time, of the first seed of each arm."""
    found: list[Part] = []
    for name, arm in arms.items():
        seed, run = min((arm.counted or arm.runs).items())
        if has_choices(run):
            found += over_time(run, f"{name}, seed {seed}")
    return Section("Load of every expert over time", found, folded=True)


def has_choices(run: Run) -> bool:
    """Whether there is anything to balance."""
    return flat(run.config).get("model.router.experts") != 1


def _balance(arms: Mapping[str, Arm]) -> Iterator[Figure]:
    yield from _drawn(
        arms, "Load entropy", "load_entropy", "entropy of loads / log E",
        "Of a training batch, mean of the layers; 1 is a perfect balance.", limit=1.0,
    )  # fmt: skip
    yield from _drawn(
        arms, "Largest load", "max_load", "share of tokens",
        "Of the most loaded expert of any layer.", reduce=lambda x: x.max(1),
    )  # fmt: skip
    yield from _drawn(
        arms, "Routing entropy", "routing_entropy", "nats",
        "Of a token's own distribution over the experts, mean of tokens and layers.",
    )  # fmt: skip


def _drawn(
    arms: Mapping[str, Arm],
    title: str,
    field: str,
    label: str,
    note: str,
    limit: float | None = None,
    reduce: Any = lambda x: x.mean(1),
) -> Iterator[Figure]:
    found: dict[str, Band | None] = {
        name: band(arm, over_steps(field, reduce)) for name, arm in arms.items()
    }
    if any(found.values()):
        yield Figure(title, bands(title.lower(), found, "step", label, limit), note)


def _smooth_loss(run: Run) -> tuple[Sequence[float], np.ndarray]:
    steps, values = column(run.train, "loss")
    return steps, smooth(values, max(len(values) // 25, 1))


def _depth(run: Run) -> tuple[Sequence[float], np.ndarray]:
    _, values = column(run.train, "residual_norm")
    if values.ndim < 2:
        return [], np.array([])
    last = values[-max(len(values) // 10, 1) :].mean(0)
    return range(len(last)), last


def unlike(arms: Sequence[Arm]) -> Iterator[str]:
    """What else differs between runs that are to differ in their fields and seeds only."""
    runs = [run for arm in arms for run in arm.runs.values()]
    for what, values in {
        "code: commits": [_start(run, "commit") for run in runs],
        "hardware:": [_start(run, "processor") or _start(run, "devices") for run in runs],
        "data: hashes of rows": [run.data.get("rows_sha256") for run in runs],
    }.items():
        kinds = Counter(str(value)[:48] for value in values if value)
        if len(kinds) > 1:
            shown = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common(4))
            yield f"The runs are not of the same {what} {shown}."
    seeds = {tuple(sorted(arm.counted)) for arm in arms}
    if len(seeds) > 1:
        yield "The arms were not run under the same seeds; differences are of those they share."


def _start(run: Run, name: str) -> Any:
    return run.starts[-1].get(name) if run.starts else None


def of_sweep(study: Study) -> list[Section]:
    """How a sweep was made: trials that came to nothing, commands, place and cost."""
    runs = [run for arm in study.arms.values() for run in arm.runs.values()]
    return [
        Section("Trials that came to nothing", _lost(study)),
        Section("Commands", list(_commands(study))),
        *place(runs, _threads(study)),
    ]


def _threads(study: Study) -> int:
    """The `--threads` that a sweep gave each of its runs on a CPU."""
    commands = "\n".join(str(start.get("command")) for start in study.starts)
    return max(map(int, re.findall(r" --?threads[= ](\d+)", commands)), default=1)


def _lost(study: Study) -> list[Part]:
    rows = [
        (
            f"trial {trial.number}",
            trial.name or " ".join(f"{p}={setting(x)}" for p, x in trial.fields.items()),
            trial.state,
            trial.reason or ("the objective has no number" if trial.state == "complete" else ""),
        )
        for trial in study.lost
        # An arm that never reached its objective is told of among the arms.
        if trial.state != "complete" or study.settings["search"] != "arms"
    ]
    return [Table(rows, ("trial", "what", "state", "why"))] if rows else []


def _commands(study: Study) -> Iterator[Part]:
    if study.starts:
        yield Text("The sweep; the same command goes on with one that was stopped.", "note")
        yield Code("\n".join(dict.fromkeys(str(s.get("command", "?")) for s in study.starts)))
    trials = [trial for trial in study.trials if trial.command]
    if trials:
        note = (
            "Each trial, under its first seed; it wants a --workdir of its own. On a CPU, sums of "
            "floats depend on the number of threads: NPROC=1 in front gives the sweep's very bits "
            "(unless it had other --threads)."
        )
        yield Text(note, "note")
        yield Code("\n".join(f"{trial.command}  # {trial.number}" for trial in trials))


def place(runs: Sequence[Run], threads: int | None = None) -> list[Section]:
    """What was it run on, and what did it cost.

    Args:
      threads: of each run on a CPU; None where they are not known.
    """
    spent = sum(run.core_seconds(threads) for run in runs)
    cost = fields(
        {
            "runs": len(runs),
            "wall time of the runs together, seconds": round(sum(r.seconds for r in runs), 1),
            "core-seconds, at most": round(spent, 1),
        }
    )
    note = "Core-seconds: wall time by the cores that a run could use, which it may have shared."
    if threads:
        note = f"Core-seconds: wall time by the {plural(threads, 'thread')} that a run had."
    return [
        Section("Ran on", ran_on(runs)),
        Section("Time taken", [cost, Text(note, "note")] if runs else []),
    ]


def in_numbers(arm: Arm, measure: str) -> dict[str, Any]:
    """A measure of an arm, for `--json`."""
    values = arm.values(measure)
    return {
        **(plain(arm.interval(measure)) or {}),
        "values": {str(seed): value.number for seed, value in values.items()},
        "not reached": arm.unreached(measure),
    }


def plain(found: Interval | None) -> dict[str, float | None] | None:
    """An interval as JSON has it: null for what is infinite or no number."""
    if found is None:
        return None
    return {k: v if math.isfinite(v) else None for k, v in dataclasses.asdict(found).items()}


def base_fields(study: Study) -> dict[str, Any]:
    """The fields of the sweep's base, by dotted path."""
    return flat(study.settings["base"])
