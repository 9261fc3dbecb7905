"""Parameters on their way from rest to use, and their gradients on the way back.

All of this runs inside `shard_map`, on local shards. What is gathered once a step is gathered here;
what is gathered layer by layer is wrapped, and gathered when the network reads it.

Gradients are those of a sum over devices of each one's own share of the loss. Differentiation turns
a gather into a sum that leaves each device its shard (reduce-scatter), so wrapped weights come back
summed over `fsdp`; `scatter` does the rest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax import lax

from zaya_jax.parallel.rules import Place

Values = dict[str, jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sharded:
    """A weight that is gathered where it is read: `x[...]` is the whole.

    The model reads every parameter so, layer by layer; under rematerialisation it is gathered
    again for the backward pass, and never more than a layer's weights are whole.

    Attributes:
      value: this device's shard, with a leading axis for a stack that is not yet taken apart.
      axes: mesh axes that divide it, outermost first.
      dimension: the one they divide, counted from behind.
    """

    value: jax.Array
    axes: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    dimension: int = dataclasses.field(metadata={"static": True})

    @property
    def dtype(self):
        """Of the weight."""
        return self.value.dtype

    def __getitem__(self, index: Any) -> jax.Array:
        """The whole weight."""
        return _gather(self.value, self.axes, self.dimension)[index]


def gather(places: Mapping[str, Place], values: Values) -> Values:
    """From rest to use: what the axes that divide at rest only hold, on every device of them."""
    return {
        path: _gather(value, places[path].once, places[path].divided)
        for path, value in values.items()
    }


def lazy(places: Mapping[str, Place], values: Values) -> dict[str, Any]:
    """Values in use as the network reads them: the divided ones are `Sharded`."""
    return {
        path: Sharded(value, found.in_use, found.divided)
        if (found := places[path]).in_use and found.divided is not None
        else value
        for path, value in values.items()
    }


def scatter(places: Mapping[str, Place], gradients: Values) -> Values:
    """From use to rest: summed over all devices, each with its shard of the sum."""
    summed: Values = {}
    copied: dict[tuple[str, ...], Values] = {}
    for path, gradient in gradients.items():
        found = places[path]
        if found.once and found.divided is not None:
            gradient = lax.psum_scatter(
                gradient,
                found.once,
                scatter_dimension=gradient.ndim + found.divided,
                tiled=True,
            )
        summed[path] = gradient
        if found.copies:
            copied.setdefault(found.copies, {})[path] = gradient
    for axes, values in copied.items():
        summed |= lax.psum(values, axes)  # one collective for all of them
    return summed


def _gather(value: jax.Array, axes: tuple[str, ...], dimension: int | None) -> jax.Array:
    if not axes or dimension is None:
        return value
    return lax.all_gather(value, axes, axis=value.ndim + dimension, tiled=True)
