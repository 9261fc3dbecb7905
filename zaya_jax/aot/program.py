"""What is compiled, and how another process gets it: by an importable name and JSON arguments."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Program:
    """What the function named by a `Job` returns: a call to compile.

    Attributes:
      function: to be jitted.
      args: its arguments. An array is a `jax.ShapeDtypeStruct`, or a concrete array where its
        values steer the work of a kernel (lengths, group sizes): they are not compiled in, but the
        counts of bytes and FLOPs are made for them. All else is static.
      donate: positions in `args` that are donated.
    """

    function: Callable
    args: tuple[Any, ...]
    donate: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Job:
    """One thing to compile.

    Attributes:
      function: "package.module:name" of a function that returns a `Program`.
      arguments: JSON values that it is called with, by keyword.
      mesh: axis names and sizes; the function is then called with `mesh`, a `jax.sharding.Mesh` of
        the target's devices, and puts shardings into its arguments. None is one device.
      devices_per_host: that XLA shall assume.
      want_hlo: whether the report holds the compiled program as text.
      want_kernels: whether its Pallas kernels are also counted (bytes, FLOPs) and extracted.
    """

    function: str
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mesh: Mapping[str, int] | None = None
    devices_per_host: int = 8
    want_hlo: bool = False
    want_kernels: bool = False

    @property
    def devices(self) -> int:
        return math.prod((self.mesh or {}).values())

    @property
    def topology(self) -> str:
        """PARTITIONSxHOSTSxDEVICES, as XLA spells it.

        Raises:
          ValueError: the mesh does not fill whole hosts.
        """
        per_host = min(self.devices, self.devices_per_host)
        if self.devices % per_host:
            raise ValueError(
                f"mesh {dict(self.mesh or {})} has {self.devices} devices, which do not fill whole "
                f"hosts of {per_host}"
            )
        return f"1x{self.devices // per_host}x{per_host}"


def is_array(leaf: Any) -> bool:
    """Whether a leaf of `Program.args` is an array, by shape or by value; all else is static."""
    import jax
    import numpy as np

    return isinstance(leaf, jax.ShapeDtypeStruct | jax.Array | np.ndarray)


def arrays_only(program: Program) -> tuple[Any, tuple[list, ...]]:
    """The program's function and arguments with all but arrays bound: lists of arrays remain."""
    import jax

    flat = [jax.tree.flatten(argument) for argument in program.args]
    masks = [list(map(is_array, leaves)) for leaves, _ in flat]

    def call(*lists):
        args = []
        for given, (leaves, structure), mask in zip(lists, flat, masks, strict=True):
            arrays = iter(given)
            merged = [next(arrays) if own else leaf for leaf, own in zip(leaves, mask, strict=True)]
            args.append(jax.tree.unflatten(structure, merged))
        return program.function(*args)

    lists = tuple(
        [leaf for leaf, own in zip(leaves, mask, strict=True) if own]
        for (leaves, _), mask in zip(flat, masks, strict=True)
    )
    return call, lists


def load(name: str) -> Callable[..., Program]:
    """The function called "package.module:name".

    Raises:
      ValueError: `name` is not written so, or names nothing.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f'{name!r}: a function is named "package.module:name"')
    found = getattr(importlib.import_module(module), attribute, None)
    if found is None:
        raise ValueError(f"{name!r}: module {module} has no {attribute}")
    return found
