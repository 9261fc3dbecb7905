"""The fields of a sweep: many runs of one experiment that differ in a few fields, and in seeds.

A sweep file in `experiments/sweeps/` or `experiments/ablations/` has a `get_config()` like any
experiment; `--config.FIELD=VALUE` overrides its fields, those of the experiment under `base`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

from zaya_jax.config.schema import Experiment

SEARCHES = ("arms", "grid", "random", "tpe")
PRUNERS = ("none", "median")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones where the field is whole."""

    low: float
    high: float
    log: bool = False  # drawn evenly in the logarithm


@dataclasses.dataclass(frozen=True)
class Pruning:
    """Trials that are given up because they fall behind."""

    kind: str = "none"  # none | median (of the complete trials, at the same seed and step)
    after_trials: int = 5  # complete trials before the first is given up
    after_step: int = 0  # no run is given up before this step


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Trials of one experiment; a trial is a choice of fields, run once for every seed.

    arms: by name, the fields in which an arm differs from `base`, as nested sections:
      {"linear": {"model": {"router": {"kind": "linear"}}}, "mlp_eda": {}}. See `nested`.
    space: the fields that are searched, as nested sections; a leaf is a tuple of values, or a
      range {"low": 0.0, "high": 0.1, "log": False}.
    claims: (measure, better arm, worse arm, who says so); each is held against the outcome.
    """

    name: str = "sweep"
    about: str = ""  # the question that it asks, for its page
    file: str = ""  # the experiment file that `base` comes from, for the commands on the page
    base: Experiment = Experiment()
    search: str = "arms"  # arms | grid | random | tpe
    arms: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    space: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    trials: int = 24  # of random and tpe
    at_once: int = 4  # under tpe or pruning: trials that know nothing of each other's outcomes
    seeds: tuple[int, ...] = (0, 1, 2)  # of the runs of every trial: `train.seed`
    search_seed: int = 0  # of the search itself
    objective: str = "bits_per_byte"  # a measure, see `zaya_jax.sweep.measures`
    measures: tuple[str, ...] = ()  # further ones for the page
    claims: tuple[tuple[str, str, str, str], ...] = ()
    pruning: Pruning = Pruning()


def nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """{"model.router.kind": "linear"} as {"model": {"router": {"kind": "linear"}}}."""
    found: dict[str, Any] = {}
    for path, value in fields.items():
        *sections, name = path.split(".")
        node = found
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return found


def flat(section: Mapping[str, Any], cls: type = Experiment, path: str = "") -> dict[str, Any]:
    """The inverse of `nested`: what stands in nested sections, by dotted path.

    A leaf is what stands where the experiment has a field, or has nothing at all.
    """
    annotations = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for name, value in section.items():
        inner = annotations.get(name)
        if dataclasses.is_dataclass(inner) and isinstance(value, Mapping):
            found |= flat(value, typing.cast(type, inner), f"{path}{name}.")
        else:
            found[f"{path}{name}"] = value
    return found


def arms(sweep: Sweep) -> dict[str, dict[str, Any]]:
    """The arms of a checked sweep: by name, its fields by dotted path."""
    return {name: flat(section) for name, section in sweep.arms.items()}


def space(sweep: Sweep) -> dict[str, tuple | Range]:
    """The space of a checked sweep, by dotted path."""
    return {
        path: Range(**leaf) if isinstance(leaf, Mapping) else leaf
        for path, leaf in flat(sweep.space).items()
    }
