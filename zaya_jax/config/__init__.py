"""The typed schema of an experiment.

An experiment is an `ml_collections.ConfigDict` in `experiments/`, overridden by flags;
`freeze` turns it into the dataclasses of `schema`, once, at the boundary. Everything behind the
boundary reads typed, validated, immutable fields. All mistakes are reported together, each with its
field, its value and what would be accepted, before anything is compiled.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from zaya_jax.config.build import ConfigError, accepted_types, build
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
    Parallel,
    Router,
    Train,
)
from zaya_jax.config.sweep import Pruning, Range, Sweep, arms, nested, space
from zaya_jax.config.sweep_checks import check_sweep

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
    "Parallel",
    "Pruning",
    "Range",
    "Router",
    "Sweep",
    "Train",
    "arms",
    "check",
    "check_model",
    "fill",
    "freeze",
    "freeze_sweep",
    "from_dict",
    "left_open",
    "nested",
    "open_model",
    "space",
    "sweep_from_dict",
    "sweep_to_config_dict",
    "to_config_dict",
    "to_dict",
]


def to_config_dict(experiment: Experiment | Sweep) -> ml_collections.ConfigDict:
    """The ConfigDict form of an experiment: what `get_config` returns and what flags override."""

    def convert(node: Any) -> ml_collections.ConfigDict:
        config = ml_collections.ConfigDict()
        hints = typing.get_type_hints(type(node))
        for field in dataclasses.fields(node):
            value = getattr(node, field.name)
            if dataclasses.is_dataclass(value):
                config[field.name] = convert(value)
            elif value is None:
                kind = next(t for t in accepted_types(hints[field.name]) if t is not type(None))
                config[field.name] = config_dict.placeholder(kind)
            elif isinstance(value, Mapping):
                config[field.name] = _in_order(value)
            else:
                config[field.name] = value
        return config

    return convert(experiment)


def _in_order(section: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Arms, or a space, in the order in which they are written, which is that of their trials.

    A flag may set values where there was a range, and the other way round.
    """
    config = ml_collections.ConfigDict(sort_keys=False)
    for name, value in section.items():
        if isinstance(value, list | tuple) or (isinstance(value, Mapping) and "low" in value):
            config[name] = config_dict.FieldReference(value, field_type=object)
        else:
            config[name] = _in_order(value) if isinstance(value, Mapping) else value
    return config


def to_dict(experiment: Experiment | Sweep) -> dict[str, Any]:
    """Plain nested data, e.g. for `config.json`."""
    return dataclasses.asdict(experiment)


def from_dict(data: Mapping[str, Any]) -> Experiment:
    """Builds and validates an experiment from nested data (a ConfigDict, or a `config.json`).

    Raises:
      ConfigError: unknown fields, wrong types, impossible or contradictory values, all at once.
    """
    problems: list[str] = []
    experiment = build(Experiment, data, "", problems)
    if not problems:
        problems = list(check(experiment))
    if problems:
        raise ConfigError("the experiment cannot be run:\n  - " + "\n  - ".join(problems))
    return experiment


def freeze(config: ml_collections.ConfigDict) -> Experiment:
    """The typed, validated form of a ConfigDict (see `from_dict`)."""
    return from_dict(config.to_dict())


def sweep_from_dict(data: Mapping[str, Any]) -> Sweep:
    """Builds and validates a sweep from nested data (a ConfigDict, or a `sweep.json`).

    Raises:
      ConfigError: as `from_dict`, and for what cannot be searched.
    """
    problems: list[str] = []
    sweep = build(Sweep, data, "", problems)
    if not problems:
        problems = [f"base.{line}" for line in check(sweep.base)]
        sweep = check_sweep(sweep, problems)
    if problems:
        raise ConfigError("the sweep cannot be run:\n  - " + "\n  - ".join(problems))
    return sweep


def freeze_sweep(config: ml_collections.ConfigDict) -> Sweep:
    """The typed, validated form of a ConfigDict (see `sweep_from_dict`)."""
    return sweep_from_dict(config.to_dict())


def sweep_to_config_dict(sweep: Sweep) -> ml_collections.ConfigDict:
    """The ConfigDict form of a sweep, as `to_config_dict` has that of an experiment."""
    return to_config_dict(sweep)
