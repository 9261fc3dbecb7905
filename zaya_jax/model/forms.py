"""Moving values between the two forms of the layers, `unroll` and `scan` (see `decoder`)."""

from __future__ import annotations

import dataclasses
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
    model: Model, params: Mapping[str, jax.Array], biases: Mapping[str, jax.Array], layers: str
) -> tuple[Model, dict[str, jax.Array], dict[str, jax.Array]]:
    """The same network with its layers in the form `layers`: `scan` or `unroll`."""
    if model.layers == layers:
        return model, dict(params), dict(biases)
    target = dataclasses.replace(model, layers=layers)

    def move(values, source, wanted) -> dict[str, jax.Array]:
        places = addresses(source(model))

        def read(name: str) -> jax.Array:
            place = places[name]
            value = values[place.path]
            return value if place.row is None else value[place.row]

        moved = {}
        for path, declaration in wanted(target).items():
            if isinstance(declaration.layers, tuple):
                rows = [read(declaration.full_name(i)) for i in declaration.layers]
                moved[path] = jnp.stack(rows)
            else:
                moved[path] = read(declaration.full_name(declaration.layers))
        return moved

    return (
        target,
        move(params, declarations, declarations),
        move(biases, bias_declarations, bias_declarations),
    )
