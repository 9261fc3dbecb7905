"""What a valid argument of a problem's function is: a small language to check, draw and describe.

A schema is plain data: `{"type": "int", "min": 0, "max": 9}`, `float` likewise, `{"type": "bool"}`,
`{"type": "str", "alphabet": "abc", "min_length": 0, "max_length": 5}`, `{"type": "list", "of": ...,
"min_length": 0, "max_length": 5}`, `{"type": "tuple", "of": [...]}`, `{"type": "choice", "of":
[...]}` with plain values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from zaya_jax.errors import UserError, hint
from zaya_jax.sandbox.values import NotPlain, encode

Schema = Mapping[str, Any]


class _Type(NamedTuple):
    fields: tuple[str, ...]
    check: Callable[[Schema, str], None]
    accepts: Callable[[Schema, Any], bool]
    draw: Callable[[Schema, np.random.Generator], Any]
    describe: Callable[[Schema], str]


def check(schema: Any, where: str) -> None:
    """Checks a schema, before any value is.

    Raises:
        UserError: it is none; names the place.
    """
    if not isinstance(schema, Mapping):
        raise UserError(f"{where} is {schema!r:.60}; a schema is an object with a type")
    kind = schema.get("type")
    if kind not in _TYPES:
        raise UserError(f"{where}.type is {kind!r}{hint(str(kind), _TYPES)}")
    rules = _TYPES[kind]
    for name in schema:
        if name not in ("type", *rules.fields):
            raise UserError(f"{where}: {kind} has no {name!r}{hint(str(name), rules.fields)}")
    rules.check(schema, where)


def accepts(schema: Schema, value: Any) -> bool:
    """Whether a value is valid, its type included: a bool is no int, a tuple no list."""
    return _TYPES[schema["type"]].accepts(schema, value)


def draw(schema: Schema, generator: np.random.Generator) -> Any:
    """A valid value."""
    return _TYPES[schema["type"]].draw(schema, generator)


def describe(schema: Schema) -> str:
    """What is valid, in English."""
    return _TYPES[schema["type"]].describe(schema)


def _check_range(names: tuple[str, str], whole: bool) -> Callable[[Schema, str], None]:
    def checks(schema: Schema, where: str) -> None:
        low, high = (schema.get(name) for name in names)
        for name, value in zip(names, (low, high), strict=True):
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise UserError(f"{where}.{name} is {value!r}; it must be a number")
        if low > high:  # type: ignore[operator]
            raise UserError(f"{where}: {names[0]} {low} is above {names[1]} {high}")
        if names[0] == "min_length" and low < 0:  # type: ignore[operator]
            raise UserError(f"{where}.min_length is {low}; it must be at least 0")

    return checks


_lengths = _check_range(("min_length", "max_length"), whole=True)


def _check_str(schema: Schema, where: str) -> None:
    _lengths(schema, where)
    if not isinstance(schema.get("alphabet"), str) or not schema["alphabet"]:
        raise UserError(f"{where}.alphabet is {schema.get('alphabet')!r}; it must be characters")


def _check_list(schema: Schema, where: str) -> None:
    _lengths(schema, where)
    check(schema.get("of"), f"{where}.of")


def _check_tuple(schema: Schema, where: str) -> None:
    if not isinstance(schema.get("of"), list):
        raise UserError(f"{where}.of is {schema.get('of')!r:.60}; it must be a list of schemas")
    for number, part in enumerate(schema["of"]):
        check(part, f"{where}.of[{number}]")


def _check_choice(schema: Schema, where: str) -> None:
    if not isinstance(schema.get("of"), list) or not schema["of"]:
        raise UserError(f"{where}.of is {schema.get('of')!r:.60}; it must be a list of values")
    try:
        encode(schema["of"])
    except NotPlain as error:
        raise UserError(f"{where}.of: {error}") from None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _length(schema: Schema, generator: np.random.Generator) -> int:
    return int(generator.integers(schema["min_length"], schema["max_length"], endpoint=True))


def _fits(schema: Schema, value: Any) -> bool:
    return schema["min_length"] <= len(value) <= schema["max_length"]


def _pick(values: Any, generator: np.random.Generator) -> Any:
    return values[int(generator.integers(len(values)))]


_TYPES = {
    "int": _Type(
        ("min", "max"),
        _check_range(("min", "max"), whole=True),
        lambda s, v: _is_int(v) and s["min"] <= v <= s["max"],
        lambda s, g: int(g.integers(s["min"], s["max"], endpoint=True)),
        lambda s: f"an integer from {s['min']} to {s['max']}",
    ),
    "float": _Type(
        ("min", "max"),
        _check_range(("min", "max"), whole=False),
        lambda s, v: isinstance(v, float) and s["min"] <= v <= s["max"],
        lambda s, g: float(min(max(round(g.uniform(s["min"], s["max"]), 6), s["min"]), s["max"])),
        lambda s: f"a float from {s['min']} to {s['max']}",
    ),
    "bool": _Type(
        (),
        lambda s, w: None,
        lambda s, v: isinstance(v, bool),
        lambda s, g: bool(g.integers(2)),
        lambda s: "True or False",
    ),
    "str": _Type(
        ("alphabet", "min_length", "max_length"),
        _check_str,
        lambda s, v: isinstance(v, str) and _fits(s, v) and set(v) <= set(s["alphabet"]),
        lambda s, g: "".join(_pick(s["alphabet"], g) for _ in range(_length(s, g))),
        lambda s: (
            f"a string of {s['min_length']} to {s['max_length']} characters out of "
            f"{s['alphabet']!r}"
        ),
    ),
    "list": _Type(
        ("of", "min_length", "max_length"),
        _check_list,
        lambda s, v: (
            isinstance(v, list) and _fits(s, v) and all(accepts(s["of"], part) for part in v)
        ),
        lambda s, g: [draw(s["of"], g) for _ in range(_length(s, g))],
        lambda s: (
            f"a list of {s['min_length']} to {s['max_length']} items, each {describe(s['of'])}"
        ),
    ),
    "tuple": _Type(
        ("of",),
        _check_tuple,
        lambda s, v: (
            isinstance(v, tuple)
            and len(v) == len(s["of"])
            and all(accepts(part, item) for part, item in zip(s["of"], v, strict=True))
        ),
        lambda s, g: tuple(draw(part, g) for part in s["of"]),
        lambda s: f"a tuple ({', '.join(map(describe, s['of']))})",
    ),
    "choice": _Type(
        ("of",),
        _check_choice,
        lambda s, v: any(type(v) is type(item) and v == item for item in s["of"]),
        lambda s, g: _pick(s["of"], g),
        lambda s: f"one of {', '.join(map(repr, s['of']))}",
    ),
}
