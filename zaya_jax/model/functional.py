"""The network as a pure function of explicit state.

Parameters and balancing biases are flat dicts from a dotted path to an array, e.g.
`params["layers.0.attention.q"]`. They are what is optimised, checkpointed, sharded and exported;
`merge` puts them into the module for one call inside a jitted function.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from zaya_jax.config import Model
from zaya_jax.errors import UserError
from zaya_jax.model.decoder import Decoder
from zaya_jax.model.parameter import BalancingBias

Params = dict[str, jax.Array]
Biases = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What was declared of one parameter (see `zaya_jax.model.parameter`).

    name: native Hugging Face name, relative to the layer where `layers` is not None.
    shape: with a leading layer axis where `layers` is a tuple.
    layers: None outside the layers, the index of one layer, or the indices of a stack.
    """

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: jnp.dtype
    axes: tuple[str | None, ...]
    group: str
    layout: str
    layers: int | tuple[int, ...] | None

    def full_name(self, layer: int | None) -> str:
        """The Hugging Face name of one layer's tensor."""
        return self.name if layer is None else f"model.layers.{layer}.{self.name}"


def _path(keys: tuple) -> str:
    return ".".join(str(k) for k in keys)


@functools.lru_cache(maxsize=32)
def _split(model: Model):
    if model.param_dtype == "float64" and not jax.config.jax_enable_x64:
        raise UserError(
            "model.param_dtype = 'float64': jax computes in float32 unless told otherwise; set "
            "JAX_ENABLE_X64=1 in the environment"
        )
    abstract = nnx.eval_shape(lambda: Decoder(model, jax.random.key(0)))
    split: Any = nnx.split(abstract, nnx.Param, BalancingBias)
    _refuse_same_names({**_declare(split[1]), **_declare(split[2])})
    return split


def _refuse_same_names(found: Mapping[str, Declaration]) -> None:
    """Two parameters of one name in a layer would begin with equal values, and share a tensor of
    an exported file.

    Raises:
      UserError: there are two.
    """
    paths: dict[tuple, str] = {}
    for path, declared in found.items():
        other = paths.setdefault((declared.layers, declared.name), path)
        if other != path:
            raise UserError(
                f"parameters {other} and {path} are both named {declared.name!r} in a Hugging Face "
                "file; expected a name of its own for each"
            )


def _declare(state) -> dict[str, Declaration]:
    found = {}
    for keys, variable in nnx.to_flat_state(state):
        meta = variable.get_metadata()
        path = _path(keys)
        found[path] = Declaration(
            path=path,
            name=meta["hf"],
            shape=tuple(variable.shape),
            dtype=jnp.dtype(variable.dtype),
            axes=meta["axes"],
            group=meta["group"],
            layout=meta["layout"],
            layers=meta["layers"],
        )
    return found


@functools.lru_cache(maxsize=32)
def declarations(model: Model) -> Mapping[str, Declaration]:
    """The declaration of every parameter, by path."""
    return _declare(_split(model)[1])


@functools.lru_cache(maxsize=32)
def bias_declarations(model: Model) -> Mapping[str, Declaration]:
    """The declaration of every router's balancing biases, by path."""
    return _declare(_split(model)[2])


def init(model: Model, key: jax.Array) -> tuple[Params, Biases]:
    """Initial parameters and balancing biases; a pure function of (model, key)."""
    split: Any = nnx.split(Decoder(model, key), nnx.Param, BalancingBias)

    def values(state) -> dict[str, jax.Array]:
        return {_path(keys): variable[...] for keys, variable in nnx.to_flat_state(state)}

    return values(split[1]), values(split[2])


def merge(model: Model, params: Params, biases: Biases) -> Decoder:
    """The module holding these values. Call it inside the function to differentiate or jit.

    Raises:
      KeyError: a parameter of the model is not among `params` or `biases`.
    """
    graph, *states = _split(model)
    filled = []
    for state, values in zip(states, (params, biases), strict=True):
        flat = nnx.to_flat_state(state)
        filled.append(
            nnx.from_flat_state(
                [(keys, variable.replace(values[_path(keys)])) for keys, variable in flat]
            )
        )
    return nnx.merge(graph, *filled)


def parameter_count(model: Model) -> int:
    """Parameters, balancing biases not among them."""
    return sum(math.prod(d.shape) for d in declarations(model).values())


def active_parameter_count(model: Model) -> int:
    """Parameters that one token uses: all but the experts it is not routed to."""
    share = min(model.router.top_k / model.router.experts, 1.0)
    return round(
        sum(
            math.prod(d.shape) * (share if "expert_mlp" in d.axes else 1.0)
            for d in declarations(model).values()
        )
    )
