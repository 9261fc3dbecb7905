"""The typed schema of an experiment.

An experiment is an `ml_collections.ConfigDict` in `experiments/`, overridden by flags;
`freeze` turns it into the dataclasses of `schema`, once, at the boundary. Everything behind the
boundary reads typed, validated, immutable fields. All mistakes are reported together, each with its
field, its value and what would be accepted, before anything is compiled.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from zaya_jax.config.checks import check, check_model
from zaya_jax.config.inherit import fill, left_open, open_model
from zaya_jax.config.schema import (
    Attention,
    Balance,
    Data,
    Experiment,
    Factors,
    Faults,
    Lora,
    Model,
    Muon,
    Ops,
    Optim,
    Router,
    Train,
)
from zaya_jax.errors import UserError, hint

__all__ = [
    "Attention",
    "Balance",
    "ConfigError",
    "Data",
    "Experiment",
    "Factors",
    "Faults",
    "Lora",
    "Model",
    "Muon",
    "Ops",
    "Optim",
    "Router",
    "Train",
    "check",
    "check_model",
    "fill",
    "freeze",
    "from_dict",
    "left_open",
    "open_model",
    "to_config_dict",
    "to_dict",
]


class ConfigError(UserError):
    """An experiment that cannot be run; the message lists every mistake."""


def _accepted_types(annotation: Any) -> tuple[type, ...]:
    if isinstance(annotation, types.UnionType):
        return tuple(typing.get_origin(a) or a for a in typing.get_args(annotation))
    return (typing.get_origin(annotation) or annotation,)


def to_config_dict(experiment: Experiment) -> ml_collections.ConfigDict:
    """The ConfigDict form of an experiment: what `get_config` returns and what flags override."""

    def convert(node: Any) -> ml_collections.ConfigDict:
        config = ml_collections.ConfigDict()
        hints = typing.get_type_hints(type(node))
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if dataclasses.is_dataclass(value):
                config[field.name] = convert(value)
            elif value is None:
                kind = next(t for t in _accepted_types(hints[field.name]) if t is not type(None))
                config[field.name] = config_dict.placeholder(kind)
            else:
                config[field.name] = value
        return config

    return convert(experiment)


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Plain nested data, e.g. for `config.json`."""
    return dataclasses.asdict(experiment)


def _tuples(value: Any) -> Any:
    """Lists, as JSON and flags give them, as tuples, however deep."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _build(cls: type, data: Any, path: str, problems: list[str]) -> Any:
    if not isinstance(data, Mapping):
        problems.append(f"{path or 'config'} = {data!r}: expected a section with fields")
        return cls()
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    values: dict[str, Any] = {}
    for name, value in data.items():
        where = f"{path}.{name}" if path else name
        if name not in names:
            problems.append(f"no field {where!r}{hint(name, names)}")
            continue
        if dataclasses.is_dataclass(hints[name]):
            values[name] = _build(hints[name], value, where, problems)
            continue
        accepted = _accepted_types(hints[name])
        if tuple in accepted:
            value = _tuples(value)
        if float in accepted and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, accepted) or (isinstance(value, bool) and bool not in accepted):
            kinds = " or ".join("none" if t is type(None) else t.__name__ for t in accepted)
            problems.append(f"{where} = {value!r}: expected {kinds}")
            continue
        values[name] = value
    return cls(**values)


def from_dict(data: Mapping[str, Any]) -> Experiment:
    """Builds and validates an experiment from nested data (a ConfigDict, or a `config.json`).

    Raises:
      ConfigError: unknown fields, wrong types, impossible or contradictory values, all at once.
    """
    problems: list[str] = []
    experiment = _build(Experiment, data, "", problems)
    if not problems:
        problems = list(check(experiment))
    if problems:
        raise ConfigError("the experiment cannot be run:\n  - " + "\n  - ".join(problems))
    return experiment


def freeze(config: ml_collections.ConfigDict) -> Experiment:
    """The typed, validated form of a ConfigDict (see `from_dict`)."""
    return from_dict(config.to_dict())
