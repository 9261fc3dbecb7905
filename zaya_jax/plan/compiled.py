"""The same plan from the compiler: the real step, compiled for that cluster on this machine."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

from zaya_jax import config
from zaya_jax.aot.collectives import BYTES, Collective, collectives
from zaya_jax.aot.compiler import Compiler
from zaya_jax.aot.program import Job
from zaya_jax.aot.report import Report
from zaya_jax.plan.case import Case
from zaya_jax.plan.memory import optimizer
from zaya_jax.plan.traffic import GATHER, MUON, Message, key_heads

TIMEOUT = 3600.0
"""Seconds of a compilation."""
NEGLIGIBLE = 2**20
"""Bytes a step that need no explanation: sums of norms, of losses, of counts."""
_SMALL = 2**16
"""Bytes of an array that is none of the activations, which grow with the tokens."""


@dataclasses.dataclass(frozen=True)
class Group:
    """All collectives of one kind over the same axes.

    Attributes:
      count: of a step.
      bytes: of their buffers on one device together, as in `traffic.Message`.
      known: whether every loop they are in has a known length; a loop over the turns of an exchange
        has not, and counts as one turn.
    """

    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: int
    known: bool


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a step.

    Attributes:
      error: why it does not compile; everything below is then empty.
      seconds: of tracing and compiling.
      arguments, temporaries, total: bytes on a device. In RL the optimizer's state, which is no
        argument of the program that needs most, is among arguments.
      groups: collectives.
      warnings: what is amiss; see `complaints`.
      versions: of what compiled it.
    """

    error: str
    seconds: float
    arguments: int
    temporaries: int
    total: int
    groups: tuple[Group, ...]
    warnings: tuple[str, ...]
    versions: Mapping[str, str]


def job(case: Case) -> Job:
    """The program of a case."""
    experiment, name = case.experiment, "training"
    if experiment.rl.tasks:  # a config of RL with a mesh is refused; the program is given its own
        experiment, name = dataclasses.replace(experiment, mesh=""), "reinforcing"
    return Job(
        f"zaya_jax.aot.sharded:{name}",
        {"experiment": config.to_dict(experiment)},
        mesh=dict(case.sizes) if case.devices > 1 else None,
        want_hlo=True,
    )


def compile_case(
    case: Case,
    predicted: Iterable[Message],
    target: str,
    progress: Callable[[float], None] = lambda seconds: None,
) -> Compiled:
    """Compiles a case for its cluster, in a process of its own.

    Args:
      predicted: to compare with.
      target: name of the GPU.
      progress: called every ten seconds with the time since the beginning.

    Raises:
      UserError: the target's compiler is not installed, in words that say how to.
    """
    with Compiler(target) as compiler, ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        running: Future[Report] = pool.submit(compiler.compile, job(case), TIMEOUT)
        while not wait([running], timeout=10).done:
            progress(time.monotonic() - began)
        return read(case, running.result(), list(predicted))


def read(case: Case, report: Report, predicted: list[Message]) -> Compiled:
    """A compiler's report in the words of a plan."""
    if report.memory is None:
        return Compiled(report.error, report.seconds, 0, 0, 0, (), (), report.versions)
    found = collectives(report.hlo, case.sizes) if case.devices > 1 else []
    beside = optimizer(case) if case.experiment.rl.tasks else 0
    memory, total = report.memory, report.memory.total + beside
    arguments = memory.arguments + beside
    return Compiled(
        error="",
        seconds=report.seconds,
        arguments=arguments,
        temporaries=total - arguments,
        total=total,
        groups=tuple(grouped(found)),
        warnings=tuple(complaints(case, report, found, predicted)),
        versions=report.versions,
    )


def in_program(case: Case, predicted: Iterable[Message]) -> list[Message]:
    """Those that the compiled program sends: in RL the optimizer is another program's."""
    rl = bool(case.experiment.rl.tasks)
    return [message for message in predicted if not rl or message.what != MUON]


def grouped(found: Iterable[Collective]) -> list[Group]:
    """Collectives by kind and axes, those with the most bytes first."""
    sums: dict[tuple[str, tuple[str, ...]], Group] = {}
    for one in found:
        key = one.kind, one.axes
        so_far = sums.get(key, Group(*key, count=0, bytes=0, known=True))
        sums[key] = Group(
            *key,
            count=so_far.count + one.times,
            bytes=so_far.bytes + one.times * one.buffer,
            known=so_far.known and one.known,
        )
    return sorted(sums.values(), key=lambda group: -group.bytes)


def predicted_groups(messages: Iterable[Message], sizes: Mapping[str, int]) -> list[Group]:
    """Predicted messages, grouped in the same way; axes in the mesh's order."""
    sums: dict[tuple[str, tuple[str, ...]], Group] = {}
    for m in messages:
        key = m.kind, tuple(axis for axis in sizes if axis in m.axes)
        so_far = sums.get(key, Group(*key, count=0, bytes=0, known=True))
        sums[key] = Group(
            *key, count=so_far.count + m.count, bytes=so_far.bytes + m.bytes, known=True
        )
    return sorted(sums.values(), key=lambda group: -group.bytes)


def complaints(
    case: Case, report: Report, found: list[Collective], predicted: list[Message]
) -> Iterator[str]:
    """What a program should not have: rematerialisations that the partitioner was forced to,
    experts gathered over their axis, activations, and other gathers that the plan does not have."""
    for line in report.warnings:
        if "rematerialization" in line:
            yield line
    experts = {leaf.declared.shape[-2:] for leaf in case.leaves if leaf.place.experts is not None}
    for one in found:
        if one.kind != GATHER or "expert" not in one.axes:
            continue
        for _, shape in one.shapes:
            if len(shape) >= 3 and shape[-2:] in experts:
                yield f"experts' matrices are gathered over expert: {list(shape)}"
    for shape, axes in sorted(set(_activations(case, found))):
        over = " x ".join(axes) or "devices that are no axis"
        yield f"{list(shape)} is gathered over {over}: of no parameter's shape, nor keys and values"
    ours = {(group.kind, group.axes) for group in predicted_groups(predicted, case.sizes)}
    for group in grouped(found):
        if group.kind == GATHER and group.bytes > NEGLIGIBLE:
            if (group.kind, group.axes) not in ours:
                over = " x ".join(group.axes) or "devices that are no axis"
                yield f"{group.bytes:,} bytes are gathered over {over}, which the plan has not"


def _activations(
    case: Case, found: Iterable[Collective]
) -> Iterator[tuple[tuple[int, ...], tuple[str, ...]]]:
    """Gathered arrays of real numbers, by shape and axes, that are no parameters (of a layer or of
    several, divided by `fsdp` or not, however transposed) and no keys and values.

    An activation whose rows are as long as a matrix is wide looks like that matrix.
    """
    matrices: list[tuple[tuple[int, ...], int]] = []
    for leaf in case.leaves:
        *stack, a, b = (1, *leaf.declared.shape)[-max(len(leaf.declared.shape), 2) :]
        ways = case.sizes["fsdp"]
        divided = [(x, y) for x, y in ((a, b), (a // ways, b), (a, b // ways)) if x and y]
        matrices += [(tuple(sorted(pair)), math.prod(stack)) for pair in divided]
    pairs = key_heads(case) * case.experiment.model.attention.head_dim
    for one in found:
        for dtype, shape in one.shapes if one.kind == GATHER else ():
            size = math.prod(shape)
            if size * BYTES.get(dtype, 4) <= _SMALL or not dtype.startswith(("f", "bf")):
                continue
            of_pairs = size % pairs == 0 and size <= 2 * pairs * case.rows * case.length
            if one.axes == ("context",) and of_pairs:
                continue
            if not any(_made_of(shape, pair, stack) for pair, stack in matrices):
                yield shape, one.axes


def _made_of(shape: tuple[int, ...], pair: tuple[int, ...], most: int) -> bool:
    """Whether an array is made of at most so many matrices of these two sides."""
    rest = list(shape)
    for side in pair:
        if side not in rest and side != 1:
            return False
        if side != 1:
            rest.remove(side)
    return math.prod(rest) <= most
