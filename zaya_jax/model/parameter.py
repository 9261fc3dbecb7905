"""Declaring a parameter once: shape, dtype, logical axes, init, optimizer group, Hugging Face name.

Sharding, optimizer groups, export and quantization read the declaration from the metadata of the
`nnx.Param`; nothing repeats it. Weights are stored [in, out]; `layout` says how the Hugging Face
file stores the same numbers (see `zaya_jax.hf.layout`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.quantized import Quantized

Init = Callable[[jax.Array, tuple[int, ...], jnp.dtype], jax.Array]

GROUPS = ("matrix", "embedding", "convolution", "vector")


class BalancingBias(nnx.Variable):
    """The balancing biases of a router: state of the bias controller, not a parameter."""


def stored(variable: nnx.Variable, dtype: jnp.dtype) -> jax.Array | Quantized:
    """A matrix for an op that takes quantized ones as they are; others in `dtype`."""
    value = variable[...]
    return value if isinstance(value, Quantized) else value.astype(dtype)


def dense(variable: nnx.Variable, dtype: jnp.dtype) -> jax.Array:
    """A matrix in `dtype`, whichever way it is stored."""
    value = variable[...]
    return value.dequantize(dtype) if isinstance(value, Quantized) else value.astype(dtype)


def zeros(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """All zeros."""
    return jnp.zeros(shape, dtype)


def ones(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """All ones."""
    return jnp.ones(shape, dtype)


def normal(std: float) -> Init:
    """Gaussian of standard deviation `std`, drawn in float32 at least."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        draw = jax.random.normal(key, shape, jnp.promote_types(dtype, jnp.float32))
        return (std * draw).astype(dtype)

    return init


class Declare:
    """Creates the parameters of one module, or of a stack of equal layers.

    A parameter's first value is a function of (seed, layer index, name) alone, so that scanned and
    unrolled models start from equal weights.

    Args:
      key: PRNG key of the model.
      dtype: storage dtype of the parameters.
      layers: None outside the layers, an int for one layer, a tuple for a stack of layers.
    """

    def __init__(
        self, key: jax.Array, dtype: jnp.dtype, layers: int | tuple[int, ...] | None = None
    ):
        self.key, self.dtype, self.layers = key, dtype, layers

    def at(self, layers: int | tuple[int, ...]) -> Declare:
        """The same declarer, for one layer or a stack."""
        return Declare(self.key, self.dtype, layers)

    def __call__(
        self,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        *,
        name: str,
        init: Init,
        group: str,
        layout: str = "same",
        kind: type[nnx.Variable] = nnx.Param,
        dtype: jnp.dtype | None = None,
    ) -> nnx.Variable:
        """A variable of `shape` with logical `axes`; a stack gets a leading `layers` axis.

        Args:
          name: tensor name in the native Hugging Face layout, relative to the layer if in one.
          layout: how the Hugging Face file lays the tensor out.
          kind: nnx.Param, or BalancingBias.
        """
        if len(shape) != len(axes):
            raise ValueError(f"{name}: {len(shape)} dimensions but {len(axes)} logical axes")
        dtype = dtype or self.dtype
        key = jax.random.fold_in(self.key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
        if isinstance(self.layers, tuple):
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.array(self.layers))
            value = jax.vmap(lambda k: init(k, shape, dtype))(keys)
            axes = ("layers", *axes)
        else:
            layer = -1 if self.layers is None else self.layers
            value = init(jax.random.fold_in(key, layer & 0x7FFFFFFF), shape, dtype)
        return kind(value, axes=axes, group=group, hf=name, layout=layout, layers=self.layers)
