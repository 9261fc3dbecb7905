"""Searches settings of kernels (block sizes, warps, stages) by compiling them, without a GPU.

From the settings in `tuned.json`, one setting of one kernel at a time is halved or doubled (stages:
one more or less), as long as that helps. What helps is ranked first by broken limits, then by
`roofline.predicted_seconds`, summed over those launches of the calls that the kernel's settings
change. A setting that does not compile ranks last. A model ranks, not a clock: where two settings
are within `MARGIN` of each other, the one that was there first stays. So it does where a GPU's
clock decides (`race`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from pallas_kernels import tuned
from zaya_jax.aot import kernels, roofline, timing
from zaya_jax.aot.compiler import Compiler
from zaya_jax.aot.report import Launch, Report
from zaya_jax.aot.targets import Target

MARGIN = 0.02
ROUNDS = 6
TIMED = 5
LIMITS: Mapping[str, tuple[int, int]] = {
    "num_warps": (1, 8),
    "num_stages": (1, 4),
    "programs": (1, 2**15),  # no block: how many of them there are
}
LARGEST_BLOCK = 1024

# Where to search if no form is named; kernels that these calls do not use (of float32 and of
# quantized weights, by the end of their names) are tuned at the calls of their kind in `OTHERWISE`.
FORMS = ("train_4k", "decode_8")
OTHERWISE = ("train_32k", "prefill", "decode_64")

Choice = Mapping[str, int]
# A choice, to look it up by.
Key = tuple[tuple[str, int], ...]


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
    """What the search made of one kernel's settings; `tried` counts compiled settings. With
    `timed`, the seconds of both costs were measured, else both are predicted."""

    kernel: str
    before: Choice
    after: Choice
    cost_before: Cost
    cost_after: Cost
    tried: int
    timed: bool = False


def cost_of(reports: Sequence[Report], target: Target, names: Set[str] | None = None) -> Cost:
    """The cost of settings that gave these reports: of the launches called `names`, or of all."""
    refused = broken = 0
    seconds = 0.0
    for report in reports:
        if not report.ok:
            refused += 1
            continue
        for launch in report.launches:
            if names is not None and launch.name not in names:
                continue
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


def climb(start: Choice, cost: Callable[[Choice], Cost]) -> tuple[Choice, dict[Key, Cost]]:
    """The best settings found from `start`, and the cost of all that were tried, `start` too."""
    seen: dict[Key, Cost] = {}

    def cached(choice: Choice) -> Cost:
        key = _key(choice)
        if key not in seen:
            seen[key] = cost(choice)
        return seen[key]

    best = start
    cached(start)
    for _ in range(ROUNDS):
        around = [choice for choice in neighbours(best) if cached(choice).beats(cached(best))]
        if not around:
            break
        best = min(around, key=cached)
    return best, seen


def race(
    start: Choice,
    seen: Mapping[Key, Cost],
    clock: Callable[[Choice], float],
    say: Callable[[str], None],
) -> tuple[Choice, Cost, Cost]:
    """The fastest by `clock` of `start` and the `TIMED` best that break no limit, and what `start`
    and it cost, by the clock.

    Another one has to be faster than `start` by more than the margin. What fails on the device
    takes infinitely long, and `say` is told.
    """
    times: dict[Key, float] = {}

    def timed(key: Key) -> float:
        if key not in times:
            try:
                times[key] = clock(dict(key))
            except Exception as error:  # of the device, or of what compiles for it
                message = " ".join(f"{type(error).__name__}: {error}".split())
                say(f"[{_listed(dict(key))}] failed on the device: {message[:300]}")
                times[key] = math.inf
        return times[key]

    own = _key(start)
    before = seen[own]._replace(seconds=timed(own))
    sound = [key for key in sorted(seen, key=lambda key: seen[key]) if seen[key][:2] == (0, 0)]
    costs = {key: Cost(0, 0, timed(key)) for key in [k for k in sound if k != own][:TIMED]}
    finished = [key for key in costs if costs[key].seconds < math.inf]
    if finished:
        fastest = min(finished, key=lambda key: costs[key])
        if costs[fastest].beats(before):
            return dict(fastest), before, costs[fastest]
    return start, before, before


class _Trials:
    """Compiles calls of one op with other settings of one of its kernels, each once."""

    def __init__(self, compiler: Compiler, chosen: kernels.Settings, kernel: str, reports: dict):
        """Args: chosen: settings of all of the op's kernels. reports: shared by all kernels."""
        self.compiler, self.chosen, self.kernel = compiler, dict(chosen), kernel
        self._reports = reports

    def settings(self, choice: Choice) -> kernels.Settings:
        return {**self.chosen, self.kernel: choice}

    def report(self, call: kernels.Name, choice: Choice) -> Report:
        settings = self.settings(choice)
        key = call, *(_key(own) for own in settings.values())
        if key not in self._reports:
            report = self.compiler.compile(call.job(settings))
            # Hundreds are kept: without the text of their kernels.
            launches = tuple(dataclasses.replace(own, ttir="") for own in report.launches)
            self._reports[key] = dataclasses.replace(report, launches=launches)
        return self._reports[key]

    def using(self, calls: Sequence[kernels.Name]) -> list[kernels.Name]:
        """Those that use the kernel: other settings of it make another program of them."""
        start = self.chosen[self.kernel]
        return [
            call
            for call in calls
            if _differing(self.report(call, start), self.report(call, _other(start)))
        ]

    def launches(self, calls: Sequence[kernels.Name]) -> Set[str] | None:
        """Names of launches that settings of the kernel change: its own, and those whose work
        follows from its own. None, which is all, if no two settings compile."""
        start = self.chosen[self.kernel]
        names: set[str] = set()
        for call in calls:
            first = self.report(call, start)
            for choice in (_other(start), *neighbours(start)):
                other = self.report(call, choice)
                if first.ok and other.ok:
                    names |= _differing(first, other)
        return names or None


def tune(
    compiler: Compiler,
    op: str,
    forms: Sequence[str] | None,
    say: Callable[[str], None],
    *,
    timed: bool = False,
) -> Iterator[Finding]:
    """Searches the settings of every kernel of `op` that these forms use, one after the other.

    Args:
      forms: None searches at `FORMS`, and what they do not use at `OTHERWISE`.
      timed: the attached GPU decides between the best.
    """
    target = compiler.target
    chosen = {name: dict(own) for name, own in tuned.table(op)[target.platform].items()}
    calls = list(kernels.names(op, list(FORMS if forms is None else forms)))
    others = list(kernels.names(op, list(OTHERWISE))) if forms is None else []
    reports: dict = {}
    for kernel in list(chosen):
        start = chosen[kernel]
        trials = _Trials(compiler, chosen, kernel, reports)
        if not reports:
            for call in calls:
                if not (report := trials.report(call, start)).ok:
                    say(f"{call}: {report.error}")
        used = trials.using(calls)
        if not used:
            used = trials.using([call for call in others if kernel.endswith(f"_{call.call}")])
        if not used:
            say(f"{op} {kernel}: not used by these calls")
            continue
        finding = _search(trials, used, target, start, say, timed)
        before, after = finding.cost_before, finding.cost_after
        say(
            f"{op} {kernel}: {_told(start, before)} -> {_told(finding.after, after)}, "
            f"{'measured' if timed else 'predicted'}, {finding.tried} tried"
        )
        chosen[kernel] = dict(finding.after)
        yield finding


def _search(
    trials: _Trials,
    used: Sequence[kernels.Name],
    target: Target,
    start: Choice,
    say: Callable[[str], None],
    timed: bool,
) -> Finding:
    names = trials.launches(used)

    def cost(choice: Choice) -> Cost:
        return cost_of([trials.report(call, choice) for call in used], target, names)

    def clock(choice: Choice) -> float:
        settings = trials.settings(choice)
        programs = [kernels.build(**call._asdict(), settings=settings) for call in used]
        return sum(map(timing.seconds_of, programs))

    best, seen = climb(start, cost)
    before, after = seen[_key(start)], seen[_key(best)]
    if timed:
        best, before, after = race(start, seen, clock, say)
    return Finding(trials.kernel, start, best, before, after, len(seen), timed)


def _other(choice: Choice) -> Choice:
    """Settings that compile to something else wherever the kernel is used."""
    return {**choice, "num_warps": 1 if choice["num_warps"] > 1 else 2}


def _differing(one: Report, other: Report) -> Set[str]:
    """Names of launches that are not the same in both; of all where one does not compile."""
    if one.ok != other.ok:
        return {launch.name for launch in (*one.launches, *other.launches)}
    found = [
        {name: [_work(x) for x in report.launches if x.name == name] for name in _names(report)}
        for report in (one, other)
    ]
    return {name for name in {**found[0], **found[1]} if found[0].get(name) != found[1].get(name)}


def _names(report: Report) -> list[str]:
    return [launch.name for launch in report.launches]


def _work(launch: Launch) -> tuple:
    return launch.grid, launch.warps, launch.stages, launch.times, launch.sizes, launch.counts


def _key(choice: Choice) -> Key:
    return tuple(sorted(choice.items()))


def _listed(choice: Choice) -> str:
    return " ".join(f"{name}={value}" for name, value in choice.items())


def _told(choice: Choice, cost: Cost) -> str:
    trouble = " not compiled" if cost.refused else f" broken {cost.broken}" if cost.broken else ""
    return f"[{_listed(choice)}]{trouble} {1e6 * cost.seconds:.1f} us"


def write(op: str, platform: str, findings: Sequence[Finding]) -> None:
    """Writes what was found into the op's `tuned.json`, one kernel a line."""
    path = tuned.FOLDER / op / "tuned.json"
    table = json.loads(path.read_text())
    for finding in findings:
        table[platform][finding.kernel] = dict(finding.after)
    parts = []
    for name, own in table.items():
        lines = [f"    {json.dumps(key)}: {json.dumps(value)}" for key, value in own.items()]
        parts.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")
