"""What a compiled program sends between devices: which collectives, over which mesh axes, how much.

Read from the HLO text of an SPMD program, whatever compiler made it. A loop's body is counted as
often as the loop runs, where XLA knows it (a scan over layers), else once; what it is then, is said
by `Collective.known`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from zaya_jax.aot.machine_code import COLLECTIVES

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4,
         "u32": 4, "f64": 8, "s64": 8, "u64": 8}  # fmt: skip

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$")
_KINDS = "|".join(COLLECTIVES)
_INSTRUCTION = re.compile(rf"= (.*?) ({_KINDS})(-start)?\((.*)$")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(
    r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_NAMED = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"  # 'axis_0'=2,'axis_1'=4
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?"
    r" \{([^}]*)\}"  # 'axis_1'
)
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_LISTED = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction of a program.

    Attributes:
      kind: e.g. `all-gather`.
      axes: mesh axes that its groups span; for a permute, those along which a device's number
        changes. Empty where its groups are of no such kind.
      group: devices that take part together; of a permute, 1.
      shapes: of its results on one device, e.g. ("f32", (4, 8)).
      times: how often a run executes it.
      known: whether that is known; else `times` counts each loop of unknown length once.
    """

    kind: str
    axes: tuple[str, ...]
    group: int
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    times: int
    known: bool

    @property
    def bytes(self) -> int:
        """Of its results on one device, each time."""
        return sum(BYTES.get(dtype, 4) * math.prod(shape) for dtype, shape in self.shapes)

    @property
    def buffer(self) -> int:
        """Bytes of the larger of what goes in and what comes out, on one device, each time."""
        return self.bytes * self.group if self.kind == "reduce-scatter" else self.bytes


def collectives(hlo: str, mesh: Mapping[str, int]) -> list[Collective]:
    """Those of a program.

    Args:
      hlo: the text of a compiled module.
      mesh: size of each axis, outermost first; device i is the i-th of the mesh.
    """
    bodies, entry = _computations(hlo)
    groups = _groups_of_axes(mesh)
    return list(_walk(bodies, entry, groups, mesh, 1, True))


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation, and the name of the entry."""
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in hlo.splitlines():
        found = _COMPUTATION.match(line)
        if found:
            current = bodies.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return bodies, entry


def _walk(
    bodies: Mapping[str, list[str]],
    name: str,
    groups: Mapping[frozenset, tuple[str, ...]],
    mesh: Mapping[str, int],
    times: int,
    known: bool,
) -> Iterator[Collective]:
    for line in bodies.get(name, []):
        found = _INSTRUCTION.search(line)
        if found:
            shapes = tuple(
                (dtype, tuple(int(size) for size in sizes.split(",") if size))
                for dtype, sizes in _SHAPE.findall(found[1])
                if dtype in BYTES
            )
            if found[3]:
                shapes = _results(found[2], shapes)
            members = _replica_groups(line)
            axes = _axes(found[2], line, groups, members, mesh)
            group = max(map(len, members), default=1)
            yield Collective(found[2], axes, group, shapes, times, known)
            continue
        called = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            called += [branch.strip().lstrip("%") for branch in branches.split(",")]
        trips = _TRIPS.search(line)
        loop = " while(" in line
        for inner in called:
            yield from _walk(
                bodies,
                inner,
                groups,
                mesh,
                times * (int(trips[1]) if trips else 1),
                known and (trips is not None or not loop),
            )


def _groups_of_axes(mesh: Mapping[str, int]) -> dict[frozenset, tuple[str, ...]]:
    """From the sets of devices that share all other coordinates, to the axes they differ in."""
    wide = [axis for axis, size in mesh.items() if size > 1]
    ids = np.arange(math.prod(mesh.values())).reshape(tuple(mesh.values()))
    names = list(mesh)
    found = {}
    for count in range(1, len(wide) + 1):
        for axes in itertools.combinations(wide, count):
            size = math.prod(mesh[axis] for axis in axes)
            last = [names.index(axis) for axis in axes]
            rest = [i for i in range(len(names)) if i not in last]
            rows = ids.transpose(rest + last).reshape(-1, size)
            found[frozenset(frozenset(row.tolist()) for row in rows)] = axes
    return found


def _results(
    kind: str, shapes: tuple[tuple[str, tuple[int, ...]], ...]
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Of an asynchronous start, which also names its operands, those of a sum excepted."""
    if kind == "all-reduce":
        return shapes
    arrays = [shape for shape in shapes if shape != ("u32", ())]  # a permute's two counters
    return tuple(arrays[len(arrays) // 2 :])


def _axes(
    kind: str,
    line: str,
    groups: Mapping[frozenset, tuple[str, ...]],
    members: list[frozenset[int]],
    mesh: Mapping[str, int],
) -> tuple[str, ...]:
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{([\d,{}]*)\}", line)
        return _moved(re.findall(r"\{(\d+),(\d+)\}", pairs[1] + "}") if pairs else [], mesh)
    return groups.get(frozenset(members), ())


def _moved(pairs: list[tuple[str, str]], mesh: Mapping[str, int]) -> tuple[str, ...]:
    sizes = tuple(mesh.values())
    moved = set()
    for source, target in pairs:
        there, here = (np.unravel_index(int(i), sizes) for i in (source, target))
        moved |= {axis for axis, a, b in zip(mesh, there, here, strict=True) if a != b}
    return tuple(axis for axis in mesh if axis in moved)


def _replica_groups(line: str) -> list[frozenset[int]]:
    """The sets of devices, written in one of three ways: of XLA's own mesh, as iota, one by one."""
    named = _NAMED.search(line)
    if named:
        sizes = {axis: int(size) for axis, size in re.findall(r"('\w+')=(\d+)", named[1])}
        axes = named[4].split(",")
        if not set(axes) <= set(sizes):  # a part of an axis
            return []
        ids = _iota(named[2] or str(math.prod(sizes.values())), named[3])
        ids = ids.reshape(tuple(sizes.values()))
        last = [list(sizes).index(axis) for axis in axes]
        rest = [i for i in range(len(sizes)) if i not in last]
        rows = ids.transpose(rest + last).reshape(-1, math.prod(sizes[axis] for axis in axes))
        return [frozenset(row.tolist()) for row in rows]
    iota = _IOTA.search(line)
    if iota:
        rows = _iota(iota[2], iota[3]).reshape([int(n) for n in iota[1].split(",")])
        return [frozenset(row.tolist()) for row in rows]
    listed = _LISTED.search(line)
    found = re.findall(r"\{([\d,]+)\}", listed[1]) if listed else []
    return [frozenset(int(n) for n in group.split(",")) for group in found]


def _iota(sizes: str, permutation: str | None) -> np.ndarray:
    """Device numbers `[sizes]T(permutation)`, flat."""
    dims = [int(n) for n in sizes.split(",")]
    ids = np.arange(math.prod(dims)).reshape(dims)
    if permutation:
        ids = ids.transpose([int(n) for n in permutation.split(",")])
    return ids.reshape(-1)
