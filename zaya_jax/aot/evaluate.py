"""Integer semantics of Triton's IR, in NumPy: enough to know a workgroup's masks and loop bounds.

A value is an array (int64, or bool), a `Pointer`, or None where it is not known: floats never are,
and loads only from operands whose contents were given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from zaya_jax.aot.ttir import Operation


class Pointer(NamedTuple):
    """Into the kernel's argument `argument`, `offset` elements from its start."""

    argument: int
    offset: np.ndarray


Known = np.ndarray | Pointer
WORD = 2**32


def _toward_zero(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    quotient = np.abs(a) // np.maximum(np.abs(b), 1)
    return np.where((a < 0) != (b < 0), -quotient, quotient)


def _unsigned(compute: Callable) -> Callable:
    return lambda a, b: compute(a % WORD, b % WORD)


BINARY: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "arith.addi": np.add,
    "arith.subi": np.subtract,
    "arith.muli": np.multiply,
    "arith.divsi": _toward_zero,
    "arith.divui": _unsigned(_toward_zero),
    "arith.remsi": lambda a, b: a - _toward_zero(a, b) * b,
    "arith.remui": _unsigned(lambda a, b: a - _toward_zero(a, b) * b),
    "arith.maxsi": np.maximum,
    "arith.minsi": np.minimum,
    "arith.maxui": _unsigned(np.maximum),
    "arith.minui": _unsigned(np.minimum),
    "arith.andi": np.bitwise_and,
    "arith.ori": np.bitwise_or,
    "arith.xori": np.bitwise_xor,
    "arith.shli": np.left_shift,
    "arith.shrsi": np.right_shift,
    "arith.shrui": _unsigned(np.right_shift),
}

# By MLIR's numbering of predicates.
COMPARE = (
    np.equal,
    np.not_equal,
    np.less,
    np.less_equal,
    np.greater,
    np.greater_equal,
    _unsigned(np.less),
    _unsigned(np.less_equal),
    _unsigned(np.greater),
    _unsigned(np.greater_equal),
)

REDUCE: Mapping[str, Callable] = {
    "arith.addi": np.sum,
    "arith.maxsi": np.max,
    "arith.maxui": np.max,
    "arith.minsi": np.min,
    "arith.minui": np.min,
    "arith.andi": np.bitwise_and.reduce,
    "arith.ori": np.bitwise_or.reduce,
}


def evaluate(
    operation: Operation,
    operands: Sequence[Known | None],
    program: tuple[int, ...],
    grid: tuple[int, ...],
    contents: Mapping[int, np.ndarray],
) -> Known | None:
    """The result of an operation without regions (or a reduction); None where it is not known.

    Args:
      operands: what is known of them.
      program: indices of the workgroup.
      contents: of the kernel's arguments that are known, flat.
    """
    found = _evaluate(operation, operands, program, grid, contents)
    # NumPy gives scalars, which are no arrays, for arrays without axes.
    return found if found is None or isinstance(found, Pointer) else np.asarray(found)


def _evaluate(operation, operands, program, grid, contents) -> Known | None:
    name, attributes = operation.name, operation.attributes
    shape = operation.results[0].type.shape
    match name:
        case "arith.constant":
            value = attributes["value"]
            return None if isinstance(value, str) else np.broadcast_to(np.asarray(value), shape)
        case "tt.get_program_id":
            return np.asarray(program[attributes["axis"]])
        case "tt.get_num_programs":
            return np.asarray(grid[attributes["axis"]])
        case "tt.make_range":
            return np.arange(attributes["start"], attributes["end"])
        case "arith.select":
            return _select(operands)
        case "tt.load":
            return _load(operands, contents)
    if not operands or any(value is None for value in operands):
        return None
    if name == "tt.addptr":
        pointer, offset = operands
        assert isinstance(pointer, Pointer) and isinstance(offset, np.ndarray)
        return Pointer(pointer.argument, pointer.offset + offset)
    if isinstance(operands[0], Pointer):
        moved = _move(name, operands[0].offset, attributes, shape)
        return None if moved is None else Pointer(operands[0].argument, moved)
    arrays = [value for value in operands if isinstance(value, np.ndarray)]
    if name in BINARY:
        return _wrapped(BINARY[name](*arrays), operation)
    if name == "arith.cmpi":
        return COMPARE[attributes["predicate"]](*arrays)
    if name == "tt.reduce" and len(arrays) == 1:
        combine = REDUCE.get(operation.regions[0].operations[0].name)
        return None if combine is None else combine(arrays[0], axis=attributes["axis"])
    return _move(name, arrays[0], attributes, shape)


def _move(name: str, array: np.ndarray, attributes: Mapping, shape: tuple) -> np.ndarray | None:
    """Operations that move elements or widen them, and change none."""
    match name:
        case "tt.splat" | "tt.broadcast":
            return np.broadcast_to(array, shape)
        case "tt.expand_dims":
            return np.expand_dims(array, attributes["axis"])
        case "tt.reshape" | "tt.unsplat":
            return np.reshape(array, shape)
        case "tt.trans":
            return np.transpose(array, attributes["order"])
        case "arith.extui":
            return np.where(array, array % WORD, 0) if array.dtype != bool else array.astype(int)
        case "arith.extsi" | "arith.index_cast":
            return array.astype(int)
        case "arith.trunci":
            return array
        case "tt.bitcast":
            return array
    return None


def _wrapped(array: np.ndarray, operation: Operation) -> np.ndarray:
    """As a 32-bit register holds it."""
    if array.dtype == bool or operation.results[0].type.element != "i32":
        return array
    return (array + WORD // 2) % WORD - WORD // 2


def _select(operands: Sequence[Known | None]) -> Known | None:
    condition, yes, no = operands
    if not isinstance(condition, np.ndarray):
        return None
    if isinstance(yes, np.ndarray) and isinstance(no, np.ndarray):
        return np.where(condition, yes, no)
    if condition.all():
        return yes
    return None if condition.any() else no


def _load(
    operands: Sequence[Known | None], contents: Mapping[int, np.ndarray]
) -> np.ndarray | None:
    pointer = operands[0]
    if not isinstance(pointer, Pointer) or pointer.argument not in contents:
        return None
    flat = contents[pointer.argument]
    if len(operands) == 1:
        return flat[np.clip(pointer.offset, 0, flat.size - 1)]
    mask = operands[1]
    if not isinstance(mask, np.ndarray):
        return None
    other = operands[2] if len(operands) == 3 else None
    if not mask.all() and not isinstance(other, np.ndarray):
        other = np.zeros((), int)
    found = flat[np.clip(np.where(mask, pointer.offset, 0), 0, flat.size - 1)]
    return np.where(mask, found, other if isinstance(other, np.ndarray) else 0)
