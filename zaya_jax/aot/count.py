"""Bytes and FLOPs of a kernel, counted in its lowered code: loads, stores and products x grid.

Workgroups differ: causal attention walks fewer blocks near the start, masks cut the last tile. So
sampled workgroups are followed through their control flow, with `evaluate` for the integers that
masks, branches and loop bounds depend on, and nothing for the rest.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from zaya_jax.aot import dataflow
from zaya_jax.aot.evaluate import Known, Pointer, evaluate
from zaya_jax.aot.report import Counts
from zaya_jax.aot.ttir import Block, Operation, Value, walk

SAMPLES = 16
# Bytes up to which a workgroup's loads are followed address by address.
FOLLOWED_BYTES = 2**22

FLOAT_OPERATIONS = frozenset(
    f"arith.{name}"
    for name in ("addf", "subf", "mulf", "divf", "remf", "negf", "maxnumf", "minnumf")
) | {"arith.maximumf", "arith.minimumf", "arith.cmpf"}
# Operations that move bytes, and the place of the mask among their operands, if they have one.
MASK = {"tt.load": 1, "tt.store": 2, "tt.atomic_rmw": 2, "tt.atomic_cas": 3}
PRECISE = 2  # tt.dot's inputPrecision for float32 operands: 0 tf32, 1 tf32x3, 2 ieee
DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32", "f64": "float64", "i8": "int8"}


Sums = collections.defaultdict


def _sums() -> Sums:
    return collections.defaultdict(float)


class Uncountable(Exception):
    """How long a loop runs depends on values that are not known."""


@dataclasses.dataclass
class Tally:
    """What one workgroup did; `loads` by argument, -1 where the argument is not known."""

    loads: Sums = dataclasses.field(default_factory=_sums)
    stores: float = 0.0
    vector: float = 0.0
    matrix: Sums = dataclasses.field(default_factory=_sums)
    exact: bool = True
    # By argument: the elements' bytes, and the offsets that loads went to.
    touched: dict[int, tuple[int, list[np.ndarray]]] = dataclasses.field(default_factory=dict)

    def add(self, other: Tally, times: int) -> None:
        self.stores += times * other.stores
        self.vector += times * other.vector
        for own, more in ((self.loads, other.loads), (self.matrix, other.matrix)):
            for key, value in more.items():
                own[key] += times * value
        self.exact &= other.exact

    @property
    def work(self) -> float:
        sums = sum(self.loads.values()) + sum(self.matrix.values())
        return self.stores + self.vector + sums

    def touch(self, pointer: Known | None, item_bytes: int, mask: Known | None) -> None:
        """Remembers which elements a load reads."""
        if not isinstance(pointer, Pointer):
            return
        offset = pointer.offset
        if isinstance(mask, np.ndarray):
            offset, mask = np.broadcast_arrays(offset, mask)
            offset = offset[mask]
        self.touched.setdefault(pointer.argument, (item_bytes, []))[1].append(offset.ravel())

    def distinct(self, argument: int) -> float:
        """Bytes read of `argument`, each once."""
        if argument not in self.touched:
            return self.loads[argument]
        item_bytes, offsets = self.touched[argument]
        places = np.concatenate(offsets)
        if not places.size:
            return 0.0
        seen = np.zeros(places.max() - places.min() + 1, bool)
        seen[places - places.min()] = True
        return float(item_bytes * np.count_nonzero(seen))


def count(
    body: Block,
    grid: tuple[int, ...],
    contents: Mapping[int, np.ndarray] | None = None,
    samples: int = SAMPLES,
) -> Counts:
    """The work of one launch of the kernel `body` over `grid`.

    Args:
      contents: what is known of the kernel's arguments, by position.
      samples: workgroups to follow, spread evenly.

    Raises:
      Uncountable: a loop's length depends on what is not known.
    """
    flat = {
        position: np.asarray(array).astype(np.int64).ravel()
        for position, array in (contents or {}).items()
        if np.issubdtype(np.asarray(array).dtype, np.integer) or np.asarray(array).dtype == bool
    }
    total = math.prod(grid)
    followed = min(total, samples)
    indices = [int((i + 0.5) * total / followed) for i in range(followed)]
    counter = _Counter(body, grid, flat, addresses=False)
    tallies = [counter.run(index) for index in indices]
    scale = total / followed
    arguments = range(len(body.arguments))
    loads = [scale * sum(tally.loads[a] for tally in tallies) for a in arguments]
    matrix = _sums()
    for tally in tallies:
        for dtype, flops in tally.matrix.items():
            matrix[dtype] += scale * flops
    reads, by_address = loads, False
    if max(sum(tally.loads.values()) for tally in tallies) <= FOLLOWED_BYTES:
        # Where all workgroups load as much, a few tell enough.
        alike = len({tuple(sorted(tally.loads.items())) for tally in tallies}) == 1
        chosen = indices[:: max(followed // 4, 1)] if alike else indices
        counter = _Counter(body, grid, flat, addresses=True)
        touched = [counter.run(index) for index in chosen]
        share = total / len(chosen)
        reads = [share * sum(tally.distinct(a) for tally in touched) for a in arguments]
        by_address = True
    return Counts(
        loads=scale * sum(sum(tally.loads.values()) for tally in tallies),
        stores=scale * sum(tally.stores for tally in tallies),
        reads=tuple(reads),
        followed=by_address,
        matrix=dict(matrix),
        vector=scale * sum(tally.vector for tally in tallies),
        exact=all(tally.exact for tally in tallies),
        sampled=followed / total,
    )


class _Counter:
    """Follows workgroups of one kernel, with or without the addresses that they load from."""

    def __init__(
        self,
        body: Block,
        grid: tuple[int, ...],
        contents: Mapping[int, np.ndarray],
        *,
        addresses: bool,
    ):
        self.body, self.grid, self.contents = body, grid, contents
        self.addresses = addresses
        self.needed = dataflow.needed(body, addresses)
        self.bases = dataflow.bases(body)
        self.regular: dict[Block, bool] = {}
        self.plans: dict[Block, tuple[Tally, list[Operation]]] = {}

    def run(self, index: int) -> Tally:
        """Follows the workgroup `index`, the first axis of the grid running fastest."""
        place = []
        for size in self.grid:
            index, at = divmod(index, size)
            place.append(at)
        self.program = tuple(place)
        tally = Tally()
        environment: dict[Value, Known | None] = {
            argument: Pointer(position, np.zeros((), np.int64))
            for position, argument in enumerate(self.body.arguments)
        }
        self._block(self.body, environment, tally)
        return tally

    def _block(
        self, block: Block, environment: dict[Value, Known | None], tally: Tally
    ) -> Sequence[Known | None]:
        """Follows a block; returns what its terminator hands on."""
        if block not in self.plans:
            self.plans[block] = self._plan(block)
        fixed, steps = self.plans[block]
        tally.add(fixed, 1)
        for operation in steps:
            operands = [environment.get(operand) for operand in operation.operands]
            results: Sequence[Known | None] = ()
            match operation.name:
                case "scf.yield" | "scf.condition":
                    return operands
                case "scf.for":
                    results = self._for(operation, operands, environment, tally)
                case "scf.while":
                    results = self._while(operation, operands, environment, tally)
                case "scf.if":
                    results = self._if(operation, operands, environment, tally)
                case _:
                    self._work(operation, operands, tally)
                    if operation.results and operation.results[0] in self.needed:
                        place = (self.program, self.grid)
                        results = (evaluate(operation, operands, *place, self.contents),)
            environment.update(zip(operation.results, results, strict=False))
        return ()

    def _plan(self, block: Block) -> tuple[Tally, list[Operation]]:
        """The work of `block` that is always the same, and the operations that must be followed."""
        fixed, steps = Tally(), []
        for operation in block.operations:
            moves = operation.name in MASK
            masked = moves and len(operation.operands) > MASK[operation.name]
            if (
                operation.name.startswith("scf.")
                or masked
                or (moves and self.addresses)
                or any(result in self.needed for result in operation.results)
            ):
                steps.append(operation)
            else:
                self._work(operation, [None] * len(operation.operands), fixed)
        return fixed, steps

    def _work(self, operation: Operation, operands: Sequence[Known | None], tally: Tally) -> None:
        """Adds the work of an operation that is not control flow."""
        name, values, results = operation.name, operation.operands, operation.results
        if name in MASK:
            # A store through a Pallas reference loads what it replaces; compilers drop that.
            if name == "tt.load" and not results[0].used:
                return
            argument = self.bases.get(values[0], -1)
            kind = results[0].type if name == "tt.load" else values[1].type
            mask = operands[MASK[name]] if len(operands) > MASK[name] else None
            moved = float(kind.item_bytes * kind.items)
            if isinstance(mask, np.ndarray):
                lanes = np.count_nonzero(np.broadcast_to(mask, kind.shape))
                moved = float(kind.item_bytes * int(lanes))
            elif len(operands) > MASK[name]:
                tally.exact = False
            if name != "tt.store":
                tally.loads[argument] += moved
            if name != "tt.load":
                tally.stores += moved
            elif self.addresses:
                tally.touch(operands[0], kind.item_bytes, mask)
        elif name == "tt.dot":
            *batch, m, k = values[0].type.shape
            n = values[1].type.shape[-1]
            tally.matrix[_matrix_dtype(operation)] += 2 * math.prod(batch) * m * n * k
        elif name in ("tt.reduce", "tt.scan"):
            tally.vector += sum(v.type.items for v in values if v.type.is_float)
        elif name == "math.fma":
            tally.vector += 2 * values[0].type.items
        elif name in FLOAT_OPERATIONS or name.startswith("math."):
            tally.vector += values[0].type.items
        elif name == "tt.extern_elementwise" and results[0].type.is_float:
            tally.vector += results[0].type.items

    def _for(self, operation, operands, environment, tally) -> Sequence[Known | None]:
        low, high, step, *carried = operands
        if any(not isinstance(bound, np.ndarray) for bound in (low, high, step)):
            raise Uncountable("a loop's length depends on values that are not known")
        block = operation.regions[0]
        rounds = range(int(low), int(high), int(step))
        if self._regular(block):
            once = Tally()
            self._block(block, environment, once)
            tally.add(once, len(rounds))
            return [None] * len(carried)
        for index in rounds:
            environment.update(zip(block.arguments, [np.asarray(index), *carried], strict=True))
            carried = list(self._block(block, environment, tally))
        return carried

    def _while(self, operation, operands, environment, tally) -> Sequence[Known | None]:
        before, after = operation.regions
        carried = operands
        while True:
            environment.update(zip(before.arguments, carried, strict=True))
            go, *carried = self._block(before, environment, tally)
            if not isinstance(go, np.ndarray):
                raise Uncountable("a loop's length depends on values that are not known")
            if not go:
                return carried
            environment.update(zip(after.arguments, carried, strict=True))
            carried = self._block(after, environment, tally)

    def _if(self, operation, operands, environment, tally) -> Sequence[Known | None]:
        regions = operation.regions
        if isinstance(operands[0], np.ndarray):
            taken = 0 if operands[0] else 1
            return self._block(regions[taken], environment, tally) if taken < len(regions) else ()
        tallies = []
        for region in regions:
            tallies.append(Tally())
            self._block(region, environment, tallies[-1])
        tally.add(max(tallies, key=lambda t: t.work), 1)
        tally.exact = False
        return [None] * len(operation.results)

    def _regular(self, block: Block) -> bool:
        """Whether all rounds of a loop do the same: no mask, branch or bound in `block` depends on
        anything computed there, and no address need be followed."""
        if block not in self.regular:
            self.regular[block] = not any(
                (operation.name.startswith("scf.") and operation.name != "scf.yield")
                or any(result in self.needed for result in operation.results)
                for operation in walk(block)
            )
        return self.regular[block]


def _matrix_dtype(dot: Operation) -> str:
    element = dot.operands[0].type.element
    if element == "f32" and dot.attributes.get("inputPrecision") != PRECISE:
        return "tf32"
    return "float8" if element.startswith("f8") else DTYPES.get(element, element)
