"""Triton's IR of a Pallas kernel: taken out of the lowered program, as a tree that Python can walk.

A Pallas kernel is lowered to a custom call whose configuration holds the kernel as MLIR bytecode.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax._src.interpreters import mlir as jax_mlir
from jax._src.lib import triton as triton_dialect
from jax._src.lib.mlir import ir

CALL_TARGET = "__gpu$xla.gpu.triton"

DTYPES = {"i1": np.bool_, "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64}
ITEM_BYTES = {"index": 8, "tf32": 4}


@dataclasses.dataclass(frozen=True)
class Type:
    """Of a value: `element` is e.g. `bf16`; of a pointer, what it points to."""

    shape: tuple[int, ...]
    element: str
    pointer: bool

    @property
    def items(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def item_bytes(self) -> int:
        """Of an element, a bool being a byte in memory; `f8E4M3FNUZ` has one, as `i8` has."""
        if self.element in ITEM_BYTES:
            return ITEM_BYTES[self.element]
        digits = re.match(r"\D+(\d+)", self.element)
        assert digits, self.element
        return max(int(digits[1]) // 8, 1)

    @property
    def is_float(self) -> bool:
        return not self.pointer and bool(re.match(r"(b?f|tf)\d", self.element))

    @classmethod
    def parse(cls, text: str) -> Type:
        """`i32`, `!tt.ptr<bf16>`, `tensor<64x128x!tt.ptr<bf16>>`, `tensor<64xf32>`."""
        shape: tuple[int, ...] = ()
        tensor = re.fullmatch(r"tensor<((?:\d+x)*)(.+?)(?:, #.*)?>", text)
        if tensor:
            shape = tuple(map(int, tensor[1].split("x")[:-1]))
            text = tensor[2]
        pointed = re.fullmatch(r"!tt\.ptr<(.+?)(?:, \d+)?>", text)
        return cls(shape, pointed[1] if pointed else text, pointed is not None)


@dataclasses.dataclass(eq=False)
class Value:
    """What an operation gives, or a block takes; compared by identity."""

    type: Type
    owner: Operation | None = None
    used: bool = False


@dataclasses.dataclass(eq=False)
class Block:
    arguments: list[Value]
    operations: list[Operation]


@dataclasses.dataclass(eq=False)
class Operation:
    """`attributes` holds those that a count needs, as Python values; the rest as text."""

    name: str
    operands: list[Value]
    results: list[Value]
    attributes: dict[str, Any]
    regions: list[Block]


@dataclasses.dataclass(frozen=True)
class Extracted:
    """A kernel in a lowered program: its settings, its TTIR as text and as a tree."""

    name: str
    grid: tuple[int, int, int]
    warps: int
    stages: int
    text: str
    body: Block


def extract(lowered: Any) -> list[Extracted]:
    """The Triton kernels of a `jax.stages.Lowered`, in the order of its text."""
    found = []

    def visit(operation):
        target = "call_target_name"
        if operation.name == "stablehlo.custom_call":
            if ir.StringAttr(operation.attributes[target]).value == CALL_TARGET:
                config = ir.DictAttr(operation.attributes["mhlo.backend_config"])
                found.append(_extracted(config))
        return ir.WalkResult.ADVANCE

    lowered.compiler_ir("stablehlo").operation.walk(visit)
    return found


def _extracted(config: Any) -> Extracted:
    def integer(name: str) -> int:
        return ir.IntegerAttr(config[name]).value

    context = jax_mlir.make_ir_context()
    triton_dialect.dialect.register_dialect(context)
    with context, ir.Location.unknown(context):
        module = ir.Module.parse(ir.StringAttr(config["ir"]).value_bytes)
        return Extracted(
            ir.StringAttr(config["name"]).value,
            (integer("grid_x"), integer("grid_y"), integer("grid_z")),
            integer("num_warps"),
            integer("num_stages"),
            module.operation.get_asm(enable_debug_info=False),
            _block(module.body.operations[0].regions[0].blocks[0], {}),
        )


def _block(block: Any, values: dict[Any, Value]) -> Block:
    """An MLIR block as a tree; `values` holds what is defined around it."""
    arguments = []
    for argument in block.arguments:
        arguments.append(Value(Type.parse(str(argument.type))))
        values[argument] = arguments[-1]
    operations = []
    for view in block.operations:
        source = view.operation
        operands = [values[operand] for operand in source.operands]
        for operand in operands:
            operand.used = True
        operation = Operation(source.name, operands, [], _attributes(source), [])
        for result in source.results:
            value = Value(Type.parse(str(result.type)), operation)
            operation.results.append(value)
            values[result] = value
        operation.regions = [
            _block(inner, values) for region in source.regions for inner in region.blocks
        ]
        operations.append(operation)
    return Block(arguments, operations)


def _attributes(operation: Any) -> dict[str, Any]:
    return {name: _attribute(operation.attributes[name]) for name in operation.attributes}


def _attribute(attribute: Any) -> Any:
    match attribute:
        case ir.IntegerAttr() | ir.BoolAttr():
            return attribute.value
        case ir.DenseI32ArrayAttr():
            return list(attribute)
        case ir.DenseIntElementsAttr():
            return np.array(list(attribute))
    return str(attribute)


def walk(block: Block) -> Iterator[Operation]:
    """Every operation in `block`, also those in regions, outer ones first."""
    for operation in block.operations:
        yield operation
        yield from itertools.chain.from_iterable(map(walk, operation.regions))
