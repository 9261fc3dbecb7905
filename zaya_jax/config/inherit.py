"""Model sections that leave fields open, for runs that start from weights: these then say them.

`open_model` makes such a section for an experiment file, `fill` closes it. What is frozen, and
written into a run's `config.json`, is always complete.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from zaya_jax.config.schema import Model


def open_model(**said: Any) -> Model:
    """A model section that is to be that of `train.init_from`, but for the fields said here.

    Args:
      said: fields of `Model`; those of `attention`, `router` and `ops` as dicts.

    Raises:
      TypeError: there is no such field.
    """
    return _open(Model, said)


def _open(section: type, said: Mapping[str, Any]) -> Any:
    values: dict[str, Any] = dict(said)
    for name, hint in typing.get_type_hints(section).items():
        if dataclasses.is_dataclass(hint):
            values[name] = _open(typing.cast(type, hint), values.get(name, {}))
        else:
            values.setdefault(name, None)
    return section(**values)


def left_open(section: Mapping[str, Any], cls: type = Model, path: str = "model") -> Iterator[str]:
    """The fields of a model section, as nested data, that are None and may not stay so."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            inner = section.get(name, {})
            if isinstance(inner, Mapping):
                yield from left_open(inner, typing.cast(type, hint), f"{path}.{name}")
        elif name in section and section[name] is None and not _may_be_none(hint):
            yield f"{path}.{name}"


def _may_be_none(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint)


def fill(section: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """The section with the model's value wherever it has None; other values stay.

    Args:
      section: nested data of a model section.
      model: a complete `Model`, or a section of one.
    """
    return {
        name: fill(value, getattr(model, name))
        if isinstance(value, Mapping) and hasattr(model, name)
        else getattr(model, name, None)
        if value is None
        else value
        for name, value in section.items()
    }
