"""The small network whose messages are counted by hand, and plans of it."""

from __future__ import annotations

import dataclasses

from tests.parallel import programs
from zaya_jax.config import Experiment
from zaya_jax.plan import cluster, plan
from zaya_jax.plan.prediction import Plan


def experiment(mesh: str, **changes) -> Experiment:
    """Three layers of 32 channels: 4 query and 2 kv heads of 8, 8 experts of 16, router of 16, 96
    words; 16 rows of 32 tokens, float32, Muon, remat full. `changes` as in `programs`."""
    return programs.experiment(mesh, **changes)


def planned(mesh: str, target: str = "mi300x", **changes) -> Plan:
    return plan(experiment(mesh, **changes), cluster(target))


def with_model(these: Experiment, **fields) -> Experiment:
    return dataclasses.replace(these, model=dataclasses.replace(these.model, **fields))
