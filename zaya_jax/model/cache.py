"""What cached decoding remembers of a sequence, over all layers.

What a layer keeps is up to its attention kind: keys and values; CCA's last latents and the delayed
half of the last value beside them; one latent a token under `mla`. The router's depth averaging
runs over layers, not over time: it needs no cache.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from zaya_jax.config import Model
from zaya_jax.model.attention import kind_of
from zaya_jax.model.attention.cache import LayerCache


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["layers", "lengths"], meta_fields=["filled"]
)
@dataclasses.dataclass(frozen=True)
class Cache:
    """All layers, and the live length of each row: lengths [B] int32.

    filled: static; False until a prompt was written. A filled cache continues by single tokens.
    """

    layers: tuple[LayerCache, ...]
    lengths: jax.Array
    filled: bool = False

    @property
    def capacity(self) -> int:
        """Tokens that a row can hold."""
        return self.layers[0].k.shape[2]


def empty(model: Model, batch: int, capacity: int) -> Cache:
    """A cache for `batch` rows of at most `capacity` tokens, in the activation dtype."""
    kind = kind_of(model)
    layers = tuple(kind.empty_cache(model, batch, capacity) for _ in range(model.num_layers))
    return Cache(layers, jnp.zeros((batch,), jnp.int32))
