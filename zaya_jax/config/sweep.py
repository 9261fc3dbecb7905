"""The fields of a sweep: many runs of one experiment that differ in a few fields, and in seeds.

A sweep file in `experiments/sweeps/` or `experiments/ablations/` has a `get_config()` like any
experiment; `--config.FIELD=VALUE` overrides its fields, those of the experiment under `base`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from zaya_jax.config.schema import Experiment

SEARCHES = ("arms", "grid", "random", "tpe")
PRUNERS = ("none", "median")


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
    at_once: int = 4  # of tpe: trials drawn together, before the outcome of any of them is known
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
