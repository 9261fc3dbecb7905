"""Bytes and FLOPs of a kernel, counted in its lowered code: loads, stores and products x grid.

Workgroups differ: causal attention walks fewer blocks near the start, masks cut the last tile. So
sampled workgroups are followed through their control flow, with `evaluate` for the integers that
masks, branches and loop bounds depend on, and nothing for the rest.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from zaya_jax.aot.evaluate import Known, Pointer, evaluate
from zaya_jax.aot.report import Counts
from zaya_jax.aot.ttir import Block, Operation, Value, walk

SAMPLES = 16
# Bytes up to which a workgroup's loads are followed address by address.
FOLLOWED_BYTES = 2**20

FLOAT_OPERATIONS = frozenset(
    f"arith.{name}"
    for name in ("addf", "subf", "mulf", "divf", "remf", "negf", "maxnumf", "minnumf")
) | {"arith.maximumf", "arith.minimumf", "arith.cmpf"}
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
        return float(item_bytes * np.unique(np.concatenate(offsets)).size)


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
    followed_up = max(sum(tally.loads.values()) for tally in tallies) <= FOLLOWED_BYTES
    if followed_up:
        counter = _Counter(body, grid, flat, addresses=True)
        tallies = [counter.run(index) for index in indices]
    scale = total / followed
    matrix = _sums()
    for tally in tallies:
        for dtype, flops in tally.matrix.items():
            matrix[dtype] += flops
    arguments = range(len(body.arguments))
    return Counts(
        loads=scale * sum(sum(tally.loads.values()) for tally in tallies),
        stores=scale * sum(tally.stores for tally in tallies),
        reads=tuple(scale * sum(tally.distinct(a) for tally in tallies) for a in arguments),
        followed=followed_up,
        matrix={dtype: scale * flops for dtype, flops in matrix.items()},
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
        self.needed = _needed(body, addresses)
        self.bases = _bases(body)
        self.regular: dict[Block, bool] = {}

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
        for operation in block.operations:
            operands = [environment.get(operand) for operand in operation.operands]
            match operation.name:
                case "scf.yield" | "scf.condition" | "tt.return":
                    return operands
                case "scf.for":
                    results = self._for(operation, operands, environment, tally)
                case "scf.while":
                    results = self._while(operation, operands, environment, tally)
                case "scf.if":
                    results = self._if(operation, operands, environment, tally)
                case _:
                    self._plain(operation, operands, tally)
                    results = ()
                    if operation.results and operation.results[0] in self.needed:
                        place = (self.program, self.grid)
                        results = (evaluate(operation, operands, *place, self.contents),)
            environment.update(zip(operation.results, results, strict=False))
        return ()

    def _plain(self, operation: Operation, operands: Sequence[Known | None], tally: Tally) -> None:
        """Adds the work of an operation that is not control flow."""
        name = operation.name
        if name == "tt.load":
            # A store through a Pallas reference loads what it replaces; compilers drop that.
            if operation.results[0].used:
                mask = operands[1] if len(operands) > 1 else None
                moved = _moved(operation, operation.results[0], 1, mask, tally)
                tally.loads[self.bases.get(operation.operands[0], -1)] += moved
                if self.addresses:
                    tally.touch(operands[0], operation.results[0].type.item_bytes, mask)
        elif name == "tt.store":
            mask = operands[2] if len(operands) > 2 else None
            tally.stores += _moved(operation, operation.operands[1], 2, mask, tally)
        elif name in ("tt.atomic_rmw", "tt.atomic_cas"):
            masked = name == "tt.atomic_rmw" and len(operands) > 2
            mask = operands[2] if masked else None
            moved = _moved(operation, operation.operands[1], 2 if masked else 9, mask, tally)
            tally.loads[self.bases.get(operation.operands[0], -1)] += moved
            tally.stores += moved
        elif name == "tt.dot":
            (m, k), n = operation.operands[0].type.shape[-2:], operation.operands[1].type.shape[-1]
            batch = math.prod(operation.operands[0].type.shape[:-2])
            tally.matrix[_matrix_dtype(operation)] += 2 * batch * m * n * k
        elif name in ("tt.reduce", "tt.scan"):
            tally.vector += sum(v.type.items for v in operation.operands if v.type.is_float)
        elif name in FLOAT_OPERATIONS or name.startswith("math."):
            tally.vector += operation.operands[0].type.items
        elif name == "math.fma":
            tally.vector += 2 * operation.operands[0].type.items
        elif name == "tt.extern_elementwise" and operation.results[0].type.is_float:
            tally.vector += operation.results[0].type.items

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


def _moved(
    operation: Operation, value: Value, masks_at: int, mask: Known | None, tally: Tally
) -> float:
    """Bytes that a load or store of `value` moves."""
    items = value.type.items
    if len(operation.operands) > masks_at:
        if isinstance(mask, np.ndarray):
            items = int(np.count_nonzero(np.broadcast_to(mask, value.type.shape)))
        else:
            tally.exact = False
    return float(items * value.type.item_bytes)


def _matrix_dtype(dot: Operation) -> str:
    element = dot.operands[0].type.element
    if element == "f32" and dot.attributes.get("inputPrecision") != PRECISE:
        return "tf32"
    return "float8" if element.startswith("f8") else DTYPES.get(element, element)


def _needed(body: Block, addresses: bool) -> set[Value]:
    """The values that masks, branches, loop bounds and, if wanted, addresses depend on."""
    sources: dict[Value, list[Value]] = {}
    roots: list[Value] = []
    for operation in walk(body):
        _link(operation, sources)
        match operation.name:
            case "tt.load":
                roots += operation.operands[0 if addresses else 1 : 2]
            case "tt.store":
                roots += operation.operands[2:]
            case "tt.atomic_rmw":
                roots += operation.operands[2:]
            case "scf.for":
                roots += operation.operands[:3]
            case "scf.if":
                roots += operation.operands[:1]
            case "scf.condition":
                roots += operation.operands[:1]
    found: set[Value] = set()
    while roots:
        value = roots.pop()
        if value not in found:
            found.add(value)
            roots += sources.get(value, ())
    return found


def _bases(body: Block) -> dict[Value, int]:
    """The kernel's argument that each pointer points into, where one can tell by the code."""
    found = {argument: position for position, argument in enumerate(body.arguments)}
    sources: dict[Value, list[Value]] = {}
    for operation in walk(body):
        _link(operation, sources)
    for operation in walk(body):
        inner = [value for region in operation.regions for value in region.arguments]
        for value in [*inner, *operation.results]:
            origins = [origin for origin in sources.get(value, ()) if origin in found]
            if value.type.pointer and origins:
                found[value] = found[origins[0]]
    return found


def _link(operation: Operation, sources: dict[Value, list[Value]]) -> None:
    """Notes what each result and each argument of an inner block comes from."""

    def link(values: Iterable[Value], *origins: Sequence[Value]) -> None:
        for position, value in enumerate(values):
            own = sources.setdefault(value, [])
            own += [origin[position] for origin in origins if position < len(origin)]

    ends = [region.operations[-1].operands for region in operation.regions if region.operations]
    match operation.name:
        case "scf.for":
            carried, [yielded] = operation.operands[3:], ends
            link(operation.regions[0].arguments[1:], carried, yielded)
            link(operation.results, carried, yielded)
        case "scf.while":
            before, after = operation.regions
            condition, yielded = ends
            link(before.arguments, operation.operands, yielded)
            link(after.arguments, condition[1:])
            link(operation.results, condition[1:])
        case "scf.if":
            link(operation.results, *ends)
        case _:
            for result in operation.results:
                sources[result] = list(operation.operands)
