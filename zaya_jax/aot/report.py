"""What compiling found: plain data, the same on both sides of the process border."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, as XLA planned them; aliased outputs lie in donated arguments."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int

    @property
    def total(self) -> int:
        return self.arguments + self.outputs + self.temporaries - self.aliased


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A compiled kernel.

    Attributes:
      name: of its entry.
      registers: 32-bit registers of a thread; on AMD accumulation registers are among them.
      spills: registers that did not fit (AMD), or bytes stored for that reason (NVIDIA).
      scratch: bytes of a thread's stack in device memory.
      shared: bytes of LDS or shared memory of a workgroup.
      threads: of a workgroup.
      grid: workgroups, where the program launches it at one place; else None.
      launches: places in the program that launch it.
      matrix: matrix instructions by name, in the code as written (a loop's body counts once).
    """

    name: str
    registers: int
    spills: int
    scratch: int
    shared: int
    threads: int
    grid: tuple[int, ...] | None
    launches: int
    matrix: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Counts:
    """Work of one launch, counted in its lowered code.

    Attributes:
      loads, stores: bytes asked for, whoever answers.
      reads: bytes by argument that workgroups ask for from beyond their own caches. Where
        `followed`, each element that a workgroup reads counts once in it; else as in `loads`.
      matrix: FLOPs of matrix products by operand dtype; `tf32` is float32 at reduced precision.
      vector: other floating-point operations.
      exact: False where a mask or a branch depends on values that were not given: all lanes then
        count, and the longer branch.
      sampled: the share of workgroups that was looked at.
    """

    loads: float
    stores: float
    reads: tuple[float, ...]
    followed: bool
    matrix: Mapping[str, float]
    vector: float
    exact: bool
    sampled: float


@dataclasses.dataclass(frozen=True)
class Launch:
    """A Pallas kernel as the program calls it, before compilation.

    Attributes:
      name: given in `pallas_call`.
      grid: workgroups.
      warps, stages: of Triton.
      times: how often the program runs it (the length of scans around it).
      sizes: bytes of its arguments: operands, then results.
      operands: how many of them are operands.
      counts: None where they cannot be made; `note` then says why.
      ttir: Triton's IR, as text.
    """

    name: str
    grid: tuple[int, ...]
    warps: int
    stages: int
    times: int
    sizes: tuple[int, ...]
    operands: int
    counts: Counts | None
    note: str
    ttir: str

    @property
    def least_bytes(self) -> float:
        """Bytes that have to be moved whatever caches there are: of each operand what is read of
        it, at most once, and the results. Without counts, all of both."""
        given, results = self.sizes[: self.operands], sum(self.sizes[self.operands :])
        if self.counts is None:
            return float(sum(given) + results)
        # Of a loop over values that were given a part is read: one expert of 16, a window.
        read = sum(min(pair) for pair in zip(given, self.counts.reads, strict=False))
        return read + min(results, self.counts.stores)

    def traffic(self, cache_bytes: int, caches: int = 1) -> float:
        """Bytes that one launch moves through the cache of `cache_bytes` from what lies behind it.

        An argument that fits into half of the cache comes once into each of the device's `caches`
        of this kind, however many workgroups read it; of a larger one every workgroup's read is
        counted.

        Raises:
          ValueError: there are no counts.
        """
        if self.counts is None:
            raise ValueError(f"{self.name}: {self.note}")
        pairs = zip(self.counts.reads, self.sizes, strict=False)
        reads = (
            min(read, caches * size) if 2 * size <= cache_bytes else read for read, size in pairs
        )
        return sum(reads) + self.counts.stores


@dataclasses.dataclass(frozen=True)
class Report:
    """One job's outcome.

    Attributes:
      target: name.
      devices: in the mesh.
      error: why it did not compile, in the compiler's words; everything below is then empty.
      seconds: of lowering and compiling.
      memory: on one device.
      kernels: compiled ones, Pallas or not.
      launches: of Pallas kernels, where asked for.
      steps: XLA's, by section (`main`, `body of 3` for the loop that is step 3) and kind (e.g.
        `kCustomKernel`).
      other_bytes: read and written by steps that are not Pallas kernels, loops left out.
      collectives: count and bytes (of results, on one device) by kind.
      warnings: of the compiler.
      hlo: the compiled program, where asked for.
      versions: of what compiled it.
    """

    target: str
    devices: int
    error: str = ""
    seconds: float = 0.0
    memory: Memory | None = None
    kernels: tuple[Kernel, ...] = ()
    launches: tuple[Launch, ...] = ()
    steps: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    other_bytes: int = 0
    collectives: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    hlo: str = ""
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return not self.error

    def kernel(self, name: str) -> Kernel:
        """The compiled kernel of the Pallas kernel `name`.

        XLA numbers the second and later kernels of one name; of these the hungriest is returned.

        Raises:
          KeyError: there is none.
        """
        own = [k for k in self.kernels if re.fullmatch(rf"{re.escape(name)}(_+\d+)*", k.name)]
        if not own:
            raise KeyError(
                f"no kernel {name}; there are: {', '.join(k.name for k in self.kernels)}"
            )
        return max(own, key=lambda k: (k.spills, k.scratch, k.shared, k.registers))


def to_json(report: Report) -> dict[str, Any]:
    return dataclasses.asdict(report)


def from_json(record: Mapping[str, Any]) -> Report:
    """The report that `to_json` wrote."""
    values = dict(record)
    if values["memory"] is not None:
        values["memory"] = Memory(**values["memory"])
    values["kernels"] = tuple(Kernel(**_tuples(kernel)) for kernel in values["kernels"])
    values["launches"] = tuple(_launch(launch) for launch in values["launches"])
    values["warnings"] = tuple(values["warnings"])
    return Report(**values)


def _launch(record: Mapping[str, Any]) -> Launch:
    values = _tuples(record)
    if values["counts"] is not None:
        values["counts"] = Counts(**_tuples(values["counts"]))
    return Launch(**values)


def _tuples(record: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
