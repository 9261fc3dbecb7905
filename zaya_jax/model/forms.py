"""Moving values between the two forms of the layers, `unroll` and `scan` (see `decoder`)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zaya_jax.config import Model
from zaya_jax.model.functional import Declaration, bias_declarations, declarations


class Address(NamedTuple):
    """Where one layer's tensor lives: `path`, and its row there if the layer is part of a stack."""

    path: str
    row: int | None
    layer: int | None
    declaration: Declaration

    @property
    def shape(self) -> tuple[int, ...]:
        """Of this one tensor."""
        return self.declaration.shape[self.row is not None :]


def addresses(found: Mapping[str, Declaration]) -> dict[str, Address]:
    """From the full native Hugging Face name to the place of that tensor."""
    table = {}
    for path, declaration in found.items():
        layers = declaration.layers
        if isinstance(layers, tuple):
            places = [Address(path, row, i, declaration) for row, i in enumerate(layers)]
        else:
            places = [Address(path, None, layers, declaration)]
        for place in places:
            table[declaration.full_name(place.layer)] = place
    return table


def convert(
    model: Model,
    params: dict[str, jax.Array],
    biases: dict[str, jax.Array],
    layers: str,
    *,
    consume: bool = False,
) -> tuple[Model, dict[str, jax.Array], dict[str, jax.Array]]:
    """The same network with its layers in the form `layers`: `scan` or `unroll`.

    With `consume`, values leave `params` and `biases` as soon as they are copied: nothing but the
    stack at work is then held twice.
    """
    if model.layers == layers:
        return model, dict(params), dict(biases)
    target = dataclasses.replace(model, layers=layers)

    def move(values, source, wanted) -> dict[str, jax.Array]:
        places, targets = addresses(source(model)), wanted(target)
        unread = Counter(place.path for place in places.values())

        def names(path: str) -> list[str]:
            declaration = targets[path]
            layers = declaration.layers
            stacked = isinstance(layers, tuple)
            return [declaration.full_name(i) for i in (layers if stacked else (layers,))]

        def read(name: str) -> jax.Array:
            place = places[name]
            value = values[place.path]
            unread[place.path] -= 1
            if consume and not unread[place.path]:
                del values[place.path]
            return value if place.row is None else value[place.row]

        moved = {}
        for path in sorted(targets, key=lambda path: places[names(path)[0]].path):  # stack by stack
            rows = [read(name) for name in names(path)]
            moved[path] = jnp.stack(rows) if isinstance(targets[path].layers, tuple) else rows[0]
        return {path: moved[path] for path in targets}

    return (
        target,
        move(params, declarations, declarations),
        move(biases, bias_declarations, bias_declarations),
    )
