"""Groups of runs that differ in nothing but the seed, and their measures over the seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from zaya_jax.report.bands import Band
from zaya_jax.report.content import flat, told_apart
from zaya_jax.report.run import Run, column
from zaya_jax.sweep.measures import LESS, MEASURES, Lines, after_shift, shifts_in
from zaya_jax.sweep.statistics import Interval, Verdict, gain, interval, verdict

NO_DIFFERENCE = (
    "name",
    "data.cache_dir",
    "train.keep_checkpoints",
    "train.seed",
    "train.wandb",
)
"""Fields in which runs of one arm may differ: they say which run it is and where things lie."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A measure of one run.

    Attributes:
      number: None if there is none.
      reached: False of a count of steps to what the run never came to: the true number is larger.
    """

    number: float | None
    reached: bool = True


@dataclasses.dataclass(frozen=True)
class Arm:
    """What is compared with other arms.

    Attributes:
      fields: in which it differs from the others, by dotted path.
      runs: by seed.
      command: of one run, to be copied.
      until: what the runs wrote of later steps does not count; None counts finished runs only.
    """

    name: str
    fields: dict[str, Any]
    runs: dict[int, Run]
    command: str = ""
    until: int | None = None

    @property
    def counted(self) -> dict[int, Run]:
        """The runs that measures are taken of."""
        if self.until is not None:
            return self.runs
        return {seed: run for seed, run in self.runs.items() if run.finished}

    def values(self, measure: str) -> dict[int, Value]:
        """A measure by seed."""
        return {
            seed: value_of(measure, run, self.until) for seed, run in sorted(self.counted.items())
        }

    def numbers(self, measure: str) -> dict[int, float | None]:
        """The same as plain numbers; where a count of steps was not reached, the steps there were.

        Their mean is the restricted mean of survival analysis: well defined, and below the true.
        """
        return {seed: value.number for seed, value in self.values(measure).items()}

    def unreached(self, measure: str) -> list[int]:
        """The seeds that never came to what is counted."""
        return [seed for seed, value in self.values(measure).items() if not value.reached]

    def interval(self, measure: str) -> Interval | None:
        """Mean over seeds and its 95% interval; None where no run has a number."""
        return interval(x for x in self.numbers(measure).values() if x is not None)


def value_of(measure: str, run: Run, until: int | None = None) -> Value:
    """What a run comes to."""
    schedule = run.config.get("data", {}).get("mixture_schedule") or ()
    lines = Lines(run.train, run.evaluations, shifts_in(schedule))
    if until is not None:
        lines = lines.until(until)
    try:
        number = MEASURES[measure](lines)
    except (KeyError, TypeError, ValueError):  # lines of an older run, without that field
        return Value(None)
    if number is not None:
        return Value(float(number))
    if not (MEASURES[measure].unit == "steps" and MEASURES[measure].goal == LESS and lines.train):
        return Value(None)
    last = lines.train[-1]["step"]
    if measure.startswith("recovery"):  # counted from the first shift to the next
        stretch = after_shift(lines)
        if stretch is None or stretch[0] >= last:
            return Value(None)
        last = min(last, stretch[1]) - stretch[0]
    return Value(float(last), reached=False)


def compare(better: Arm, worse: Arm, measure: str) -> Verdict:
    """Whether the first arm is better, seed by seed, and how sure that is."""
    goal = MEASURES[measure].goal
    found = verdict(gain(better.numbers(measure), worse.numbers(measure), goal))
    return found.bounded(_bound(better.values(measure), worse.values(measure)))


def _bound(better: Mapping[int, Value], worse: Mapping[int, Value]) -> str:
    """See `Verdict.bound`; where a count of steps was not reached, the true one is larger."""
    pairs = [(better[seed], worse[seed]) for seed in better if seed in worse]
    more = any(not b.reached for _, b in pairs)
    less = any(not a.reached for a, _ in pairs)
    return "about" if more and less else "at least" if more else "at most" if less else ""


def ranked(arms: Sequence[Arm], measure: str) -> list[Arm]:
    """Those with numbers, the best mean first."""
    sign = 1 if MEASURES[measure].goal == LESS else -1
    known = [(found.mean, arm) for arm in arms if (found := arm.interval(measure)) is not None]
    return [arm for _, arm in sorted(known, key=lambda pair: sign * pair[0])]


def group(runs: Sequence[Run]) -> tuple[list[Arm], list[str]]:
    """Runs as arms, in the order in which they first come, and what is odd about them."""
    settings = [_settings(run) for run in runs]
    kinds: list[dict[str, Any]] = []
    members: list[dict[int, Run]] = []
    odd = []
    for run, fields in zip(runs, settings, strict=True):
        if fields not in kinds:
            kinds.append(fields)
            members.append({})
        there = members[kinds.index(fields)]
        seed = int(run.config.get("train", {}).get("seed", 0))
        if seed in there:
            odd.append(
                f"{run.folder} has the config and the seed of {there[seed].folder}: left out."
            )
        else:
            there[seed] = run
    paths = dict.fromkeys(path for fields in kinds for path in fields)
    differ = [path for path in paths if any(f.get(path) != kinds[0].get(path) for f in kinds)]
    short = short_names(differ)
    arms = []
    names = told_apart([{short[path]: fields.get(path) for path in differ} for fields in kinds])
    for fields, there, name in zip(kinds, members, names, strict=True):
        own = {path: fields.get(path) for path in differ}
        first = next(iter(there.values()))
        command = str(first.starts[-1].get("command", "")) if first.starts else ""
        arms.append(Arm(name or first.name, own, there, command))
    return counting(arms), odd


def counting(arms: Sequence[Arm]) -> list[Arm]:
    """The same arms; where no run is finished, all count up to the step that all have come to."""
    runs = [run for arm in arms for run in arm.runs.values()]
    if any(run.finished for run in runs) or not all(run.evaluations for run in runs):
        return list(arms)
    common = min((run.evaluations[-1]["step"] for run in runs), default=0)
    return [dataclasses.replace(arm, until=common) for arm in arms]


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """For every dotted path the fewest of its last parts that tell it from the others."""
    parts = {path: path.split(".") for path in paths}
    found = {}
    for path, names in parts.items():
        for count in range(1, len(names) + 1):
            end = names[-count:]
            if sum(other[-count:] == end for other in parts.values()) == 1:
                break
        found[path] = ".".join(end)
    return found


def _settings(run: Run) -> dict[str, Any]:
    return {path: value for path, value in flat(run.config).items() if path not in NO_DIFFERENCE}


def band(
    arm: Arm,
    curve: Callable[[Run], tuple[Sequence[float], np.ndarray]],
) -> Band | None:
    """A curve of every run, where all of them have numbers; None if there is no such place.

    Args:
      curve: x [N] and values [N] of a run.
    """
    runs = arm.counted or arm.runs
    curves: list[Mapping[float, float]] = []
    for run in runs.values():
        x, values = curve(run)
        curves.append({a: b for a, b in zip(x, values, strict=True) if np.isfinite(b)})
    curves = [points for points in curves if points]
    if not curves:
        return None
    common = sorted(set.intersection(*map(set, curves)))
    if not common:
        return None
    return Band(np.array(common), np.array([[points[x] for x in common] for points in curves]))


def over_steps(
    field: str, reduce: Callable[[np.ndarray], np.ndarray] | None = None
) -> Callable[[Run], tuple[Sequence[float], np.ndarray]]:
    """The curve of a field of `metrics.jsonl`, its layers reduced to one number."""

    def curve(run: Run) -> tuple[Sequence[float], np.ndarray]:
        steps, values = column(run.records, field)
        return steps, values if reduce is None or values.ndim < 2 else reduce(values)

    return curve
