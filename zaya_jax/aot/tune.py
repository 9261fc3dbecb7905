"""Searches settings of kernels (block sizes, warps, stages) by compiling them, without a GPU.

From the settings in `tuned.json`, one setting of one kernel at a time is halved or doubled (stages:
one more or less), as long as that helps. What helps is ranked first by broken limits, then by
`roofline.predicted_seconds`, summed over the calls compiled. A setting that does not compile ranks
last. A model ranks, not a clock: where two settings are within `MARGIN` of each other, the one that
was there first stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pallas_kernels
from pallas_kernels import tuned
from zaya_jax.aot import kernels, roofline, timing
from zaya_jax.aot.compiler import Compiler
from zaya_jax.aot.report import Report
from zaya_jax.aot.targets import Target

MARGIN = 0.02
ROUNDS = 6
TIMED = 5
LIMITS: Mapping[str, tuple[int, int]] = {"num_warps": (1, 8), "num_stages": (1, 4)}
LARGEST_BLOCK = 1024

Choice = Mapping[str, int]


class Cost(NamedTuple):
    """Compared in this order: calls that do not compile, spilled and scratch bytes and other broken
    limits, predicted seconds."""

    refused: int
    broken: int
    seconds: float

    def beats(self, other: Cost) -> bool:
        """Whether it is better by more than the model's margin."""
        if self[:2] != other[:2]:
            return self[:2] < other[:2]
        return self.seconds < other.seconds * (1 - MARGIN)


class Finding(NamedTuple):
    """What the search made of one kernel's settings; `tried` counts compiled settings."""

    kernel: str
    before: Choice
    after: Choice
    cost_before: Cost
    cost_after: Cost
    tried: int


def cost_of(reports: Sequence[Report], target: Target) -> Cost:
    """The cost of settings that gave these reports."""
    refused = broken = 0
    seconds = 0.0
    for report in reports:
        if not report.ok:
            refused += 1
            continue
        for launch in report.launches:
            kernel = report.kernel(launch.name)
            problems = list(roofline.broken_limits(kernel, launch, target))
            if problems:
                broken += kernel.spills + kernel.scratch + len(problems)
            if launch.counts is not None and roofline.groups_per_core(kernel, target):
                own = roofline.predicted_seconds(kernel, launch, target)
                seconds += launch.times * own
    return Cost(refused, broken, seconds)


def neighbours(choice: Choice) -> Iterator[Choice]:
    """Settings one step away."""
    for name, value in choice.items():
        low, high = LIMITS.get(name, (1, LARGEST_BLOCK))
        steps = (value - 1, value + 1) if name == "num_stages" else (value // 2, value * 2)
        for moved in steps:
            if low <= moved <= high:
                yield {**choice, name: moved}


def climb(
    start: Choice,
    cost: Callable[[Choice], Cost],
    clock: Callable[[Choice], float] | None = None,
) -> tuple[Choice, Cost, int]:
    """The best settings found from `start`, their cost, and how many were tried.

    With a `clock`, the `TIMED` best that break no limit are timed, and the fastest is taken; its
    cost then has the time that was measured.
    """
    seen: dict[tuple, Cost] = {}

    def cached(choice: Choice) -> Cost:
        key = tuple(sorted(choice.items()))
        if key not in seen:
            seen[key] = cost(choice)
        return seen[key]

    best = start
    for _ in range(ROUNDS):
        around = [choice for choice in neighbours(best) if cached(choice).beats(cached(best))]
        if not around:
            break
        best = min(around, key=cached)
    if clock is not None:
        sound = [key for key in sorted(seen, key=lambda key: seen[key]) if seen[key][:2] == (0, 0)]
        if sound:
            times = {key: clock(dict(key)) for key in sound[:TIMED]}
            fastest = min(times, key=lambda key: times[key])
            return dict(fastest), Cost(0, 0, times[fastest]), len(seen)
    return best, cached(best), len(seen)


def tune(
    compiler: Compiler,
    op: str,
    forms: list[str],
    say: Callable[[str], None],
    *,
    timed: bool = False,
) -> list[Finding]:
    """Searches the settings of every kernel of `op` that these forms use, one after the other.

    `timed` lets the attached GPU decide between the best.
    """
    target = compiler.target
    chosen = {name: dict(own) for name, own in tuned.table(op)[target.platform].items()}
    calls = list(kernels.names(op, forms))
    first = [compiler.compile(call.job(chosen)) for call in calls]
    for call, report in zip(calls, first, strict=True):
        if not report.ok:
            say(f"{call}: {report.error}")
    findings = []
    for kernel in list(chosen):
        start = chosen[kernel]
        used = [
            call
            for call, report in zip(calls, first, strict=True)
            if _depends(compiler, call, report, {**chosen, kernel: _other(start)})
        ]
        if not used:
            say(f"{op} {kernel}: not used by these calls")
            continue

        def cost(choice: Choice, kernel: str = kernel, used: list = used) -> Cost:
            settings = {**chosen, kernel: choice}
            return cost_of([compiler.compile(call.job(settings)) for call in used], target)

        def clock(choice: Choice, kernel: str = kernel, used: list = used) -> float:
            settings = {**chosen, kernel: choice}
            programs = [kernels.build(**call._asdict(), settings=settings) for call in used]
            return sum(map(timing.seconds_of, programs))

        before = cost(start)
        best, after, tried = climb(start, cost, clock if timed else None)
        findings.append(Finding(kernel, start, best, before, after, tried))
        say(f"{op} {kernel}: {_told(start, before)} -> {_told(best, after)}, {tried} tried")
        chosen[kernel] = dict(best)
    return findings


def _other(choice: Choice) -> Choice:
    """Settings that compile to something else wherever the kernel is used."""
    return {**choice, "num_warps": 1 if choice["num_warps"] > 1 else 2}


def _depends(
    compiler: Compiler, call: kernels.Name, report: Report, settings: kernels.Settings
) -> bool:
    other = compiler.compile(call.job(settings))
    if other.ok != report.ok:
        return True
    return [launch.warps for launch in other.launches] != [x.warps for x in report.launches]


def _told(choice: Choice, cost: Cost) -> str:
    settings = " ".join(f"{name}={value}" for name, value in choice.items())
    trouble = " not compiled" if cost.refused else f" broken {cost.broken}" if cost.broken else ""
    return f"[{settings}]{trouble} {1e6 * cost.seconds:.1f} us"


def write(op: str, platform: str, findings: Sequence[Finding], root: Path | None = None) -> None:
    """Writes what was found into the op's `tuned.json`, one kernel a line."""
    path = (root or Path(pallas_kernels.__file__).parent) / op / "tuned.json"
    table = json.loads(path.read_text())
    for finding in findings:
        table[platform][finding.kernel] = dict(finding.after)
    parts = []
    for name, own in table.items():
        lines = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in own.items()]
        parts.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")
