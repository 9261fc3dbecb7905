"""What would fit: over meshes, rematerialisation policies and batches.

A policy is cheaper the less it computes again: none, then dots, then full. A mesh is better the
more tokens it is predicted to train a second.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator

from zaya_jax.config import Experiment
from zaya_jax.config import mesh as line
from zaya_jax.config.schema import REMAT
from zaya_jax.errors import UserError
from zaya_jax.plan.case import as_training
from zaya_jax.plan.hardware import Hardware
from zaya_jax.plan.prediction import Plan, plan

POLICIES = REMAT
"""From the cheapest to the dearest."""
MOST_ROWS = 4096
"""Of a microbatch on a device."""
DOUBLINGS = 8
"""Of the devices that `smallest` looks at."""


def with_rows(experiment: Experiment, rows: int, microbatches: int = 1) -> Experiment:
    """The experiment with so many rows of a microbatch on each part of a batch."""
    shards = line.row_shards(line.parse(experiment.mesh))
    if experiment.rl.tasks:
        section = dataclasses.replace(experiment.rl, microbatch_rows=rows * shards)
        return dataclasses.replace(experiment, rl=section)
    train = dataclasses.replace(
        experiment.train, batch_size=rows * shards * microbatches, microbatches=microbatches
    )
    return dataclasses.replace(experiment, train=train)


def with_remat(experiment: Experiment, policy: str) -> Experiment:
    """The experiment under another policy."""
    model = dataclasses.replace(experiment.model, remat=policy)
    return dataclasses.replace(experiment, model=model)


def largest_batch(experiment: Experiment, hardware: Hardware) -> Plan | None:
    """The plan with the most rows of a microbatch that fit; None if not even one does."""

    def of(rows: int) -> Plan:
        return plan(with_rows(experiment, rows), hardware)

    if not of(1).fits:
        return None
    low, high = 1, 2
    while high <= MOST_ROWS and of(high).fits:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if of(middle).fits else (low, middle)
    return of(low)


def policies(experiment: Experiment, hardware: Hardware) -> dict[str, Plan | None]:
    """For each policy the plan with the largest batch; None where nothing fits."""
    return {policy: largest_batch(with_remat(experiment, policy), hardware) for policy in POLICIES}


def cheapest(experiment: Experiment, hardware: Hardware) -> Plan | None:
    """The experiment, batch and all, under the cheapest policy that fits."""
    for policy in POLICIES:
        found = plan(with_remat(experiment, policy), hardware)
        if found.fits:
            return found
    return None


def meshes(experiment: Experiment, devices: int) -> Iterator[str]:
    """All meshes of so many devices that the experiment can be run on, its batch kept."""
    sizes = [size for size in range(1, devices + 1) if devices % size == 0]
    for data, fsdp, context in itertools.product(sizes, repeat=3):
        if devices % (data * fsdp * context):
            continue
        expert = devices // (data * fsdp * context)
        named = dict(zip(line.AXES, (data, fsdp, context, expert), strict=True))
        mesh = ",".join(f"{axis}={size}" for axis, size in named.items() if size > 1)
        candidate = dataclasses.replace(experiment, mesh=mesh)
        try:
            candidate = as_training(candidate)
        except UserError:
            continue
        if not list(line.check(candidate)):
            yield mesh


def best(
    experiment: Experiment,
    hardware: Hardware,
    devices: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> list[Plan]:
    """Plans of all meshes on which the batch fits, each under its cheapest policy, the fastest
    first; where it fits on none as it is, it is cut into more microbatches.

    Args:
      progress: called with meshes looked at, and how many there are.
    """
    candidates = list(meshes(experiment, devices))
    found = []
    for number, mesh in enumerate(candidates):
        progress(number, len(candidates))
        for parts in _parts(experiment, mesh):
            train = dataclasses.replace(experiment.train, microbatches=parts)
            one = cheapest(dataclasses.replace(experiment, mesh=mesh, train=train), hardware)
            if one is not None:
                found.append(one)
                break
    progress(len(candidates), len(candidates))
    return sorted(found, key=lambda one: one.time.seconds)


def smallest(experiment: Experiment, hardware: Hardware, devices: int) -> Plan | None:
    """The fastest plan on the fewest devices that fits, the number doubled from `devices` on."""
    for _ in range(DOUBLINGS):
        found = best(experiment, hardware, devices)
        if found:
            return found[0]
        devices *= 2
    return None


def _parts(experiment: Experiment, mesh: str) -> Iterator[int]:
    """Microbatches: what the config says, then doubled until each is a row a device."""
    parts = experiment.train.microbatches
    yield parts
    if experiment.rl.tasks:
        return
    shards = line.row_shards(line.parse(mesh))
    while experiment.train.batch_size % (2 * parts * shards) == 0:
        parts *= 2
        yield parts
