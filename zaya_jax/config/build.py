"""From nested data to dataclasses: every field known and of its type, or a line that says what is
wrong with it."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from zaya_jax.errors import UserError, hint


class ConfigError(UserError):
    """An experiment or a sweep that cannot be run; the message lists every mistake."""


class WrongType(ValueError):
    """A value that its field does not take; says what would be."""


def accepted_types(annotation: Any) -> tuple[type, ...]:
    """The types that a field's annotation names: of `tuple[int, ...] | None`, tuple and None."""
    if isinstance(annotation, types.UnionType):
        return tuple(typing.get_origin(a) or a for a in typing.get_args(annotation))
    return (typing.get_origin(annotation) or annotation,)


def tuples(value: Any) -> Any:
    """Lists, as JSON and flags give them, as tuples, however deep."""
    return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def typed(annotation: Any, value: Any) -> Any:
    """The value as its field holds it: lists as tuples, whole numbers as floats.

    Raises:
      WrongType: the field takes no such value.
    """
    accepted = accepted_types(annotation)
    if tuple in accepted:
        value = tuples(value)
    if float in accepted and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
        kinds = ("none" if kind is type(None) else kind.__name__ for kind in accepted)
        raise WrongType(f"expected {' or '.join(kinds)}")
    return value


def build(cls: type, data: Any, path: str, problems: list[str]) -> Any:
    """An instance of a dataclass of dataclasses from nested data.

    Args:
      cls: the dataclass.
      data: its fields; one that is left out keeps its default.
      path: where the data stands, for messages.
      problems: gets a line for each mistake; fields that have one keep their default.
    """
    if not isinstance(data, Mapping):
        problems.append(f"{path or 'config'} = {data!r}: expected a section with fields")
        return cls()
    annotations = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    values: dict[str, Any] = {}
    for name, value in data.items():
        where = f"{path}.{name}" if path else name
        if name not in names:
            problems.append(f"no field {where!r}{hint(name, names)}")
        elif dataclasses.is_dataclass(annotations[name]):
            section = typing.cast(type, annotations[name])
            values[name] = build(section, value, where, problems)
        else:
            try:
                values[name] = typed(annotations[name], value)
            except WrongType as error:
                problems.append(f"{where} = {value!r}: {error}")
    return cls(**values)
