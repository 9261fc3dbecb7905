"""The mesh in one line, `data=4,expert=2`: how many devices each axis has, and what that must fit.

| axis | what it divides |
|---|---|
| `data` | rows of a batch; parameters and optimizer only between steps (ZeRO-1) |
| `fsdp` | rows of a batch; parameters also while they are used, layer by layer (ZeRO-3) |
| `context` | the tokens of a row (context parallelism) |
| `expert` | rows of a batch, and the experts (expert parallelism) |

An axis that is not named has one device; the empty line is one device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from zaya_jax.config.schema import Experiment
from zaya_jax.errors import UserError, hint

AXES = ("data", "fsdp", "context", "expert")
"""Outermost first: devices that are neighbours exchange tokens of experts, and then of rows."""
BATCH = ("data", "fsdp", "expert")
"""Axes that divide the rows of a batch."""


def parse(line: str) -> dict[str, int]:
    """Devices of each of `AXES`, in that order.

    Raises:
      UserError: an unknown axis, one that is there twice, a size that is no positive number.
    """
    sizes = dict.fromkeys(AXES, 1)
    named: set[str] = set()
    for part in filter(None, (part.strip() for part in line.split(","))):
        axis, equals, number = (word.strip() for word in part.partition("="))
        if axis not in AXES:
            raise UserError(f"mesh = {line!r}: no axis {axis!r}{hint(axis, AXES)}")
        if axis in named:
            raise UserError(f"mesh = {line!r}: {axis!r} is there twice")
        if not (equals and number.isascii() and number.isdecimal() and int(number) > 0):
            raise UserError(
                f"mesh = {line!r}: {axis} has {number or 'no size'!r}; expected AXIS=DEVICES, as "
                "in data=4,expert=2"
            )
        named.add(axis)
        sizes[axis] = int(number)
    return sizes


def devices(line: str) -> int:
    """How many devices a mesh has.

    Raises:
      UserError: as `parse`.
    """
    return math.prod(parse(line).values())


def row_shards(sizes: dict[str, int]) -> int:
    """Parts that the rows of a batch are divided into."""
    return math.prod(sizes[axis] for axis in BATCH)


def check(experiment: Experiment) -> Iterator[str]:
    """Yields one message for each thing that the mesh does not divide."""
    try:
        sizes = parse(experiment.mesh)
    except UserError as error:
        yield str(error)
        return
    model, train = experiment.model, experiment.train
    if sizes["expert"] > 1 and model.router.experts % sizes["expert"]:
        yield (
            f"mesh = {experiment.mesh!r}: expert = {sizes['expert']} does not divide "
            f"model.router.experts = {model.router.experts}"
        )
    if sizes["fsdp"] > 1 and model.hidden_size % sizes["fsdp"]:
        yield (
            f"mesh = {experiment.mesh!r}: fsdp = {sizes['fsdp']} does not divide "
            f"model.hidden_size = {model.hidden_size}, by which parameters are divided"
        )
    shards = row_shards(sizes)
    if shards > 1 and train.microbatches > 0 and train.batch_size % (shards * train.microbatches):
        axes = " x ".join(f"{axis} {sizes[axis]}" for axis in BATCH if sizes[axis] > 1)
        yield (
            f"mesh = {experiment.mesh!r}: train.batch_size = {train.batch_size} cannot be divided "
            f"into {axes} parts of train.microbatches = {train.microbatches} each: expected a "
            f"multiple of {shards * train.microbatches}"
        )
    yield from _check_context(experiment, sizes["context"])


def _check_context(experiment: Experiment, ranks: int) -> Iterator[str]:
    """Of the axis `context`: each rank has two chunks of a row, one from either end."""
    if ranks == 1:
        return
    length, attention = experiment.train.sequence_length, experiment.model.attention
    if length % (2 * ranks):
        yield (
            f"mesh = {experiment.mesh!r}: context = {ranks} cuts a row into {2 * ranks} chunks, "
            f"two a rank; train.sequence_length = {length} is no multiple of {2 * ranks}"
        )
        return
    past, kernels = 0, attention.conv_kernels
    if attention.kind == "cca" and all(isinstance(k, int) for k in kernels):
        past = max(sum(kernels) - len(kernels), 1)
    if length // (2 * ranks) < past:
        yield (
            f"mesh = {experiment.mesh!r}: context = {ranks} leaves chunks of "
            f"{length // (2 * ranks)} tokens of train.sequence_length = {length}; the convolutions "
            f"read {past} tokens back, which must lie in the chunk before"
        )
