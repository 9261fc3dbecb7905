"""Compiles every Pallas kernel for GPUs that need not be here, forward and backward, at the 8B's
shapes, and prints what the machine code costs beside the least that the hardware allows.

Exit status 0 only if every kernel compiles and keeps to its target's limits: no spills, no scratch,
shared memory within bounds, matrix instructions in every kernel that multiplies matrices, no
float32 product at reduced precision. docs/aot.md explains the columns.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from absl import flags

from pallas_kernels.shapes import FORMS
from zaya_jax import options
from zaya_jax.aot import kernels, roofline, timing, tune
from zaya_jax.aot.compiler import Compiler
from zaya_jax.aot.report import Kernel, Launch, Report
from zaya_jax.aot.second_opinion import SecondOpinion
from zaya_jax.aot.targets import TARGETS, Target, target_of
from zaya_jax.errors import UserError, hint
from zaya_jax.train.progress import Progress, clock

FLAGS = flags.FLAGS

HEAD = (
    f"{'kernel':<36} {'form':<11} {'regs':>4} {'spill':>5} {'scr':>3} {'shared':>7} {'occ':>4} "
    f"{'matrix':>6} {'GFLOP':>9} {'MB':>8} {'x min':>6} {'x L2':>6} {'least us':>9} | "
    f"{'regs':>4} {'spill':>5} {'shared':>7}  verdict"
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One kernel in one call.

    Attributes:
      call: what was compiled.
      kernel: as XLA compiled it; None if nothing was.
      second: as the triton wheel compiled it, or why it did not.
      gflop: of matrix products and vector operations together.
      megabytes: that memory moves, by `Launch.traffic`.
      behind_l2: megabytes that the L2s do not keep; a larger cache may.
      minimum: megabytes of what the launch reads of its operands, each once, and of its results.
      least_us: the roofline, with `minimum` and the counted arithmetic.
      problems: what keeps it from passing.
    """

    call: kernels.Name
    target: str
    name: str
    kernel: Kernel | None
    second: Kernel | str | None
    gflop: float
    megabytes: float
    behind_l2: float
    minimum: float
    least_us: float
    occupancy: float
    problems: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Whole:
    """All of a call: what our kernels and XLA's steps around them move, beside its arrays.

    Attributes:
      megabytes: that memory moves for our kernels.
      others_megabytes: operands and results of XLA's steps.
      minimum: megabytes of the call's arguments and results, each once.
      ours, others: launches of our kernels, and of XLA's.
    """

    call: kernels.Name
    target: str
    megabytes: float
    others_megabytes: float
    minimum: float
    ours: int
    others: int

    def __str__(self) -> str:
        total = self.megabytes + self.others_megabytes
        return (
            f"  all of {self.call}: {total / max(self.minimum, 1e-9):.2f} x its arrays; "
            f"{self.ours} launches of ours {self.megabytes:.2f} MB, "
            f"{self.others} of XLA's {self.others_megabytes:.2f} MB"
        )


def define_flags() -> None:
    flags.DEFINE_list("target", list(TARGETS), f"GPUs to compile for: {', '.join(TARGETS)}")
    flags.DEFINE_list("op", None, "ops to compile; by default all that have a kernel")
    flags.DEFINE_list("form", list(FORMS), f"shapes to compile at: {', '.join(FORMS)}")
    flags.DEFINE_boolean("second", True, "also ask the triton wheel's compiler")
    flags.DEFINE_boolean("tune", False, "first search better settings, and write tuned.json")
    flags.DEFINE_boolean("time", False, "with --tune: let the attached GPU choose among the best")
    options.json()


def main(argv: list[str]) -> int:
    """Prints the tables; 0 if every kernel passes, else 1."""
    del argv
    targets = [target_of(name) for name in _chosen("target", FLAGS.target, TARGETS)]
    have = kernels.ops_with_kernels()
    ops = have if FLAGS.op is None else _chosen("op", FLAGS.op, have)
    forms = _chosen("form", FLAGS.form, FORMS)
    calls = _calls(ops, forms)
    if FLAGS.time and not FLAGS.tune:
        raise UserError("--time lets the attached GPU choose among settings: it goes with --tune")
    for target in targets if FLAGS.time else ():
        timing.require_attached(target)
    compilers = [Compiler(target) for target in targets]  # raises before anything is compiled
    if FLAGS.tune:
        asked = forms if FLAGS["form"].present else None
        for compiler, op in itertools.product(compilers, ops):
            # Each finding is kept at once: a device that fails may take this process along.
            for finding in tune.tune(compiler, op, asked, _say, timed=FLAGS.time):
                tune.write(op, compiler.target.platform, [finding])
    told = _Told(len(calls) * len(targets))
    seconds = [SecondOpinion(compiler.target, compiler.python) for compiler in compilers]
    with ThreadPoolExecutor(len(targets)) as pool:
        jobs = [
            pool.submit(_rows, compiler, calls, second, FLAGS.second, told)
            for compiler, second in zip(compilers, seconds, strict=True)
        ]
        try:
            found = [job.result() for job in jobs]
        except BaseException:  # Ctrl-C: what is being compiled ends, and nothing begins
            told.stopped.set()
            for compiler, second in zip(compilers, seconds, strict=True):
                compiler.stop()
                second.stop()
            raise
    rows: list[Row] = []
    wholes: list[Whole] = []
    for target, (own, versions) in zip(targets, found, strict=True):
        print(f"{target.title} ({target.architecture}): {_told(versions)}\n{HEAD}")
        for own_rows, whole in own:
            print("\n".join(map(_line, own_rows)))
            rows += own_rows
            if whole is not None:
                wholes.append(whole)
                if whole.ours + whole.others > 1:
                    print(whole)
        print()
    failed = sum(bool(row.problems) for row in rows)
    print(f"{len(rows)} kernels, {failed} failed" if failed else f"{len(rows)} kernels pass")
    options.write_json(
        {
            "ok": not failed,
            "versions": {t.name: v for t, (_, v) in zip(targets, found, strict=True)},
            "kernels": [record(row) for row in rows],
            "calls": [record(whole) for whole in wholes],
        }
    )
    return 1 if failed else 0


class _Told:
    """How far all compilers together are, told as they go.

    Attributes:
      stopped: set when they are to stop.
    """

    def __init__(self, calls: int):
        self.stopped = threading.Event()
        self._progress, self._calls, self._done = Progress(calls), calls, 0
        self._began, self._lock = time.monotonic(), threading.Lock()

    def done(self, call: kernels.Name, target: Target) -> None:
        """One call is compiled."""
        with self._lock:
            self._done += 1
            left = (time.monotonic() - self._began) / self._done * (self._calls - self._done)
            if self._progress.due() or self._done == self._calls:
                line = f"compiled {self._done}/{self._calls}  {clock(left)} left  "
                self._progress.draw(f"{line}{call} for {target.name}")
            if self._done == self._calls:
                self._progress.say("")


def _say(line: str) -> None:
    print(line, flush=True)


def record(row: Row | Whole) -> dict[str, Any]:
    """As JSON."""
    return {**dataclasses.asdict(row), "call": row.call._asdict()}


def rows_of(
    call: kernels.Name, report: Report, target: Target, ask: SecondOpinion | None
) -> Iterator[Row]:
    """The rows of one compiled call: one for each of our kernels in it."""
    if not report.ok or not report.launches:
        problem = report.error or "no Pallas kernel in it"
        yield Row(call, target.name, "-", None, None, 0, 0, 0, 0, 0, 0, (problem,))
        return
    for launch in report.launches:
        second = None if ask is None else ask.of(launch)
        yield _row(call, launch, report.kernel(launch.name), target, second)


def whole_of(call: kernels.Name, report: Report, target: Target) -> Whole | None:
    """The call as a whole; None if it did not compile, or could not be counted."""
    if report.memory is None or any(launch.counts is None for launch in report.launches):
        return None
    ours = sum(launch.times for launch in report.launches)
    return Whole(
        call=call,
        target=target.name,
        megabytes=sum(x.times * x.traffic(target.cache) for x in report.launches) / 1e6,
        others_megabytes=report.other_bytes / 1e6,
        minimum=(report.memory.arguments + report.memory.outputs) / 1e6,
        ours=ours,
        others=sum(report.steps.get("main", {}).values()) - len(report.launches),
    )


def _row(
    call: kernels.Name,
    launch: Launch,
    kernel: Kernel,
    target: Target,
    second: Kernel | str | None,
) -> Row:
    problems = list(roofline.broken_limits(kernel, launch, target))
    if call.direction == kernels.FORWARD:
        problems += roofline.too_many_bytes(call.op, launch, target)
    counts, minimum = launch.counts, launch.least_bytes
    matrix = dict(counts.matrix) if counts else {}
    vector = counts.vector if counts else 0.0
    return Row(
        call=call,
        target=target.name,
        name=launch.name,
        kernel=kernel,
        second=second,
        gflop=(sum(matrix.values()) + vector) / 1e9,
        megabytes=launch.traffic(target.cache) / 1e6 if counts else 0.0,
        behind_l2=launch.traffic(target.l2_bytes, target.l2s) / 1e6 if counts else 0.0,
        minimum=minimum / 1e6,
        least_us=1e6 * roofline.least_seconds(matrix, vector, minimum, target),
        occupancy=roofline.occupancy(kernel, target),
        problems=tuple(problems),
    )


def _rows(
    compiler: Compiler,
    calls: list[kernels.Name],
    second: SecondOpinion,
    wants_second: bool,
    told: _Told,
) -> tuple[list[tuple[list[Row], Whole | None]], dict[str, str]]:
    found = []
    versions: dict[str, str] = {}
    with compiler, second:
        for call in calls:
            if told.stopped.is_set():
                break
            report = compiler.compile(call.job())
            versions.update(report.versions)
            ask = second if wants_second else None
            rows = list(rows_of(call, report, compiler.target, ask))
            found.append((rows, whole_of(call, report, compiler.target)))
            told.done(call, compiler.target)
    return found, versions


def _chosen(flag: str, asked: list[str], accepted: Collection[str]) -> list[str]:
    if not asked:
        raise UserError(f"--{flag}= names nothing; there are: {', '.join(accepted)}")
    for name in asked:
        if name not in accepted:
            raise UserError(f"--{flag}={name}: no such {flag}{hint(name, accepted)}")
    return asked


def _calls(ops: list[str], forms: list[str]) -> list[kernels.Name]:
    """The calls of these ops in these forms; nothing to compile would be no proof of anything."""
    calls = [name for op in ops for name in kernels.names(op, forms)]
    if calls:
        return calls
    there = [
        f"{op}: {', '.join(form for form in FORMS if any(kernels.names(op, [form])))}" for op in ops
    ]
    raise UserError(
        f"--form={','.join(forms)}: no call of --op={','.join(ops)} in it; there are: "
        f"{'; '.join(there)}"
    )


def _line(row: Row) -> str:
    verdict = "; ".join(row.problems) or "ok"
    title = f"{f'{row.name} {row.call.call}':<36} {row.call.form:<11}"
    if row.kernel is None:
        return f"{str(row.call):<48} {verdict}"
    kernel, second = row.kernel, row.second
    if isinstance(second, Kernel):
        other = f"{second.registers:>4} {second.spills:>5} {second.shared:>7}"
    else:
        other = f"{'-':>4} {'-':>5} {'-':>7}"
        verdict += f" (triton: {second})" if second else ""
    ratio, behind_l2 = (x / max(row.minimum, 1e-9) for x in (row.megabytes, row.behind_l2))
    return (
        f"{title} {kernel.registers:>4} {kernel.spills:>5} {kernel.scratch:>3} "
        f"{kernel.shared:>7} {row.occupancy:>4.0%} {sum(kernel.matrix.values()):>6} "
        f"{row.gflop:>9.3f} {row.megabytes:>8.2f} {ratio:>6.2f} {behind_l2:>6.2f} "
        f"{row.least_us:>9.2f} | "
        f"{other}  {verdict}"
    )


def _told(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
