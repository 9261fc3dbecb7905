"""The table: which mesh axes divide which logical axis, and what follows for each parameter.

A parameter lies in one of two ways:

* at **rest**, between steps, together with its optimizer state: divided by every axis that can
  divide it, so that no number is kept twice (ZeRO);
* in **use**, while the network computes: divided by `expert`, whose experts stay where they are,
  and by `fsdp`, from which each layer's matrices are gathered when the layer reads them (ZeRO-3).
  What else is divided at rest is gathered once a step (ZeRO-1).

So `data=N` is ZeRO-1, `fsdp=N` is ZeRO-3, and `data=M,fsdp=N` gathers once over M devices and layer
by layer over N.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jax.sharding import PartitionSpec

from zaya_jax.config.mesh import BATCH
from zaya_jax.model.functional import Declaration

EXPERT = ("expert",)
ZERO = ("fsdp", "data", "context", "expert")
"""What divides a parameter at rest, outermost first; `expert` only what is no expert's own."""
IN_USE = ("fsdp",)
"""Those of `ZERO` that divide it in use, too, if it is large."""
LARGE = ("matrix", "embedding")
"""Groups whose parameters are: of the others, a message for every layer would cost more than the
room."""

TABLE: Mapping[str | None, tuple[str, ...]] = {
    # of activations
    "batch": BATCH,
    "sequence": ("context",),
    # of parameters
    "experts": EXPERT,  # where it counts matrices; a router's classes are not divided
    "embed": ZERO,
    "heads": ZERO,
    "kv_heads": ZERO,
    "router": ZERO,
    "rank": ZERO,
    "vocab": ZERO,
    "expert_mlp": ZERO,
    None: ZERO,
    "layers": (),
}
"""Of the axes that `ZERO` divides a parameter has one divided: the one that the most devices
divide, the first in this order among equals."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the shards of one parameter lie; mesh axes of one device are left out.

    Attributes:
      shape: of the whole.
      experts: the dimension that `expert` divides; None where none is.
      divided: the dimension that `ZERO` divides, counted from behind, so that it stays when a stack
        of layers is taken apart; None where none is.
      once, in_use: the axes that divide it at rest only, and those that also do in use.
      copies: the axes of which each device has a copy at rest.
    """

    shape: tuple[int, ...]
    experts: int | None
    divided: int | None
    once: tuple[str, ...]
    in_use: tuple[str, ...]
    copies: tuple[str, ...]

    @property
    def rest(self) -> PartitionSpec:
        """The layout between steps."""
        return self._spec(self.in_use + self.once)

    @property
    def use(self) -> PartitionSpec:
        """The layout while the network computes."""
        return self._spec(self.in_use)

    def _spec(self, axes: tuple[str, ...]) -> PartitionSpec:
        entries: list[tuple[str, ...] | None] = [None] * len(self.shape)
        if self.experts is not None:
            entries[self.experts] = EXPERT
        if self.divided is not None and axes:
            entries[self.divided] = axes
        return PartitionSpec(*entries)


def place(declared: Declaration, sizes: Mapping[str, int]) -> Place:
    """Where a parameter's shards lie on a mesh with these many devices on each axis."""
    shape, axes = declared.shape, declared.axes
    wide = [axis for axis, size in sizes.items() if size > 1]
    # A stack of matrices, one for each expert, and not the classes that a router tells apart.
    own = len(axes) >= 3 and axes[-3] == "experts" and "expert" in wide
    experts = len(axes) - 3 if own else None
    zero = [axis for axis in ZERO if axis in wide and not (own and axis in EXPERT)]
    order = list(TABLE)
    best: tuple[str, ...] = ()
    divided = None
    for i in sorted(range(len(axes)), key=lambda i: order.index(_known(axes[i]))):
        if TABLE[_known(axes[i])] != ZERO:
            continue
        taken = _dividing(shape[i], zero, sizes)
        if _ways(taken, sizes) > _ways(best, sizes):
            best, divided = taken, i - len(shape)
    kept = IN_USE if declared.group in LARGE else ()
    once = tuple(axis for axis in best if axis not in kept)
    in_use = tuple(axis for axis in best if axis in kept)
    used = {*best, *(EXPERT if own else ())}
    return Place(shape, experts, divided, once, in_use, tuple(a for a in wide if a not in used))


def _known(axis: str | None) -> str | None:
    """A kind of one's own may name axes as it likes: those are divided like unnamed ones."""
    return axis if axis in TABLE else None


def _dividing(size: int, axes: list[str], sizes: Mapping[str, int]) -> tuple[str, ...]:
    """As many of the axes, in order, as divide a dimension together."""
    taken, ways = [], 1
    for axis in axes:
        if size % (ways * sizes[axis]) == 0:
            taken.append(axis)
            ways *= sizes[axis]
    return tuple(taken)


def _ways(axes: tuple[str, ...], sizes: Mapping[str, int]) -> int:
    ways = 1
    for axis in axes:
        ways *= sizes[axis]
    return ways
