"""What a plan is about: an experiment on a mesh, as the numbers that formulas need.

Letters are those of docs/architecture.md. Nothing here is allocated or compiled.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import jax.numpy as jnp

from zaya_jax import lora
from zaya_jax.config import Experiment
from zaya_jax.config import mesh as line
from zaya_jax.errors import UserError
from zaya_jax.model import functional
from zaya_jax.model.functional import Declaration
from zaya_jax.model.router import classes
from zaya_jax.parallel.expert import Exchange
from zaya_jax.parallel.rules import Place, place


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter on one device.

    Attributes:
      trained: whether it has a gradient and an optimizer; false for the base under LoRA.
      layers: how many layers' it holds; 0 outside of the layers.
      place: where its shards lie.
      itemsize: bytes of a number between steps.
      used_itemsize: bytes of a number while the network computes.
      whole: numbers on a device that has all of it, but for experts that are other devices'.
      in_use: numbers that a device holds during a step; what `fsdp` divides is divided.
      at_rest: numbers that a device holds between steps.
    """

    declared: Declaration
    trained: bool
    layers: int
    place: Place
    itemsize: int
    used_itemsize: int
    whole: int
    in_use: int
    at_rest: int

    @property
    def narrowed(self) -> bool:
        """Whether the network computes with a narrower copy."""
        return self.used_itemsize < self.itemsize


@dataclasses.dataclass(frozen=True)
class Case:
    """One step of training (or one microbatch and the update, of reinforcement learning).

    Attributes:
      sizes: devices of each axis of the mesh.
      rows: rows (B) on a device, of one microbatch; of a row it has S / context tokens.
      length: tokens of a whole row.
      microbatches: of a step.
      exchange: how tokens travel to experts; None where they need not.
      leaves: all parameters.
    """

    experiment: Experiment
    sizes: Mapping[str, int]
    rows: int
    length: int
    microbatches: int
    exchange: Exchange | None
    leaves: tuple[Leaf, ...]

    @property
    def devices(self) -> int:
        return math.prod(self.sizes.values())

    @property
    def tokens(self) -> int:
        """T: tokens of one microbatch on a device."""
        return self.rows * self.length // self.sizes["context"]

    @property
    def tokens_a_step(self) -> int:
        """Of all devices and microbatches."""
        return self.tokens * self.microbatches * self.devices

    @property
    def activation_itemsize(self) -> int:
        return jnp.dtype(self.experiment.model.activation_dtype).itemsize

    @property
    def classes(self) -> int:
        return classes(self.experiment.model)

    @property
    def passes(self) -> int:
        """How often a layer computes forward: once, and again under rematerialisation."""
        return 1 if self.experiment.model.remat == "none" else 2

    @property
    def mesh(self) -> str:
        """In one line, as `--mesh` takes it."""
        return ",".join(f"{axis}={size}" for axis, size in self.sizes.items() if size > 1)


def case_of(experiment: Experiment, platform: str = "rocm") -> Case:
    """The case of an experiment on its own mesh.

    Args:
      platform: that is compiled for, which `parallel.all_to_all = auto` asks.

    Raises:
      UserError: the mesh does not fit the experiment.
    """
    experiment = as_training(experiment)
    problems = list(line.check(experiment))
    if problems:
        raise UserError("\n".join(problems))
    sizes, train = line.parse(experiment.mesh), experiment.train
    exchange = None
    if sizes["expert"] > 1:
        kind, room = experiment.parallel.all_to_all, experiment.parallel.room
        if kind == "auto":
            kind = "ragged" if platform in ("rocm", "cuda") else "padded"
        exchange = Exchange(sizes["expert"], kind, room)
    return Case(
        experiment=experiment,
        sizes=sizes,
        rows=train.batch_size // (line.row_shards(sizes) * train.microbatches),
        length=train.sequence_length,
        microbatches=train.microbatches,
        exchange=exchange,
        leaves=tuple(_leaves(experiment, sizes)),
    )


def as_training(experiment: Experiment) -> Experiment:
    """The experiment, its `train` saying what a step computes: of RL that is a microbatch.

    Raises:
      UserError: a microbatch of RL that the mesh does not divide.
    """
    section, shards = experiment.rl, line.row_shards(line.parse(experiment.mesh))
    if not section.tasks:
        return experiment
    if section.microbatch_rows % shards:
        raise UserError(
            f"mesh = {experiment.mesh!r}: rl.microbatch_rows = {section.microbatch_rows} cannot be "
            f"divided into {shards} parts: expected a multiple of {shards}"
        )
    train = dataclasses.replace(
        experiment.train,
        batch_size=section.microbatch_rows,
        sequence_length=section.microbatch_tokens,
        microbatches=1,
    )
    return dataclasses.replace(experiment, train=train)


def _leaves(experiment: Experiment, sizes: Mapping[str, int]) -> Iterator[Leaf]:
    model = experiment.model
    activation = jnp.dtype(model.activation_dtype).itemsize
    base, trained = functional.declarations(model), lora.trained(experiment)
    for path, declared in {**base, **trained}.items():
        found = place(declared, sizes)
        size = declared.dtype.itemsize
        # As `train.gradient.for_compute` casts: matrices, if that is narrower, and no adapters.
        cast = declared.group == "matrix" and not experiment.lora.rank
        whole = math.prod(declared.shape) // (sizes["expert"] if found.experts is not None else 1)
        in_use = whole // _ways(found.in_use, sizes)
        at_rest = in_use // _ways(found.once, sizes)
        layers = declared.layers
        yield Leaf(
            declared=declared,
            trained=path in trained,
            layers=len(layers) if isinstance(layers, tuple) else int(layers is not None),
            place=found,
            itemsize=size,
            used_itemsize=min(activation, size) if cast else size,
            whole=whole,
            in_use=in_use,
            at_rest=at_rest if path in trained else in_use,  # a base lies as it is used
        )


def _ways(axes: tuple[str, ...], sizes: Mapping[str, int]) -> int:
    return math.prod(sizes[axis] for axis in axes)
