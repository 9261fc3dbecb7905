"""Python values as JSON, between a program in the sandbox and whoever judges it.

Only plain data crosses: an object of the program's own, whose `__eq__` says anything, does not.
This file runs inside the sandbox, too: it needs nothing but the standard library.
"""

from __future__ import annotations

import math
from typing import Any

MOST_DEPTH = 50


class NotPlain(ValueError):
    """A value that is not plain data."""


def encode(value: Any, depth: int = MOST_DEPTH) -> Any:
    """A value as what `json.dumps` writes: numbers, texts, lists; the rest as `{kind: parts}`.

    Subclasses become the plain types they extend, and what has an `item()` (a NumPy scalar), that.

    Raises:
        NotPlain: something in it is none of None, bool, int, float, complex, str, bytes, list,
            tuple, dict, set, frozenset; or it is too deep.
    """
    if not depth:
        raise NotPlain(f"a value is nested more than {MOST_DEPTH} deep")
    if value is None or isinstance(value, (bool, str)):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": value.hex()}
    if isinstance(value, list):
        return [encode(part, depth - 1) for part in value]
    for kind, name in ((tuple, "tuple"), (set, "set"), (frozenset, "frozenset")):
        if isinstance(value, kind):
            return {name: [encode(part, depth - 1) for part in value]}
    if isinstance(value, dict):
        pairs = [[encode(k, depth - 1), encode(v, depth - 1)] for k, v in value.items()]
        return {"dict": pairs}
    if type(value).__module__ == "numpy" and not getattr(value, "shape", True):
        return encode(value.item(), depth - 1)
    raise NotPlain(f"a value of type {type(value).__name__} is not plain data")


def decode(value: Any, depth: int = 2 * MOST_DEPTH) -> Any:
    """The value of which `encode` made this.

    Raises:
        NotPlain: `encode` made it of none.
    """
    if depth < 0:
        raise NotPlain(f"a value is nested more than {MOST_DEPTH} deep")
    if isinstance(value, list):
        return [decode(part, depth - 1) for part in value]
    if not isinstance(value, dict):
        return value
    try:
        ((kind, parts),) = value.items()
        if kind == "complex":
            return complex(*parts)
        if kind == "bytes":
            return bytes.fromhex(parts)
        inner = decode(parts, depth - 1)
        if kind == "dict":
            return dict(inner)
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[kind](inner)
    except (TypeError, ValueError, KeyError) as error:
        raise NotPlain(f"not an encoded value: {type(error).__name__}: {error}") from None


def same(a: Any, b: Any, tolerance: float = 1e-9) -> bool:
    """Whether two plain values are equal, of equal types.

    A bool is no int, a tuple no list; an int and a float may be equal. Floats may differ by the
    tolerance, relative or absolute; NaN equals NaN.
    """
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        if isinstance(a, int) and isinstance(b, int):
            return a == b
        return _close(a, b, tolerance)
    if type(a) is not type(b):
        return False
    if isinstance(a, complex):
        return _close(a.real, b.real, tolerance) and _close(a.imag, b.imag, tolerance)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, tolerance) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key], tolerance) for key in a)
    return a == b


def _close(a: float, b: float, tolerance: float) -> bool:
    try:
        if math.isnan(a) or math.isnan(b):
            return math.isnan(a) and math.isnan(b)
        return math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance)
    except OverflowError:  # an int beyond all floats
        return False
