"""Which rows of a batch lie where, and what one of several processes has of arrays that lie on the
devices of all of them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from zaya_jax.config.mesh import AXES


def row_order(count: int, microbatches: int, shards: int) -> np.ndarray:
    """[B]: which row of a batch stands at each place, when so many parts of it lie on devices.

    A device cuts its rows into microbatches. In this order the i-th ones of all devices are the
    rows of the whole batch's i-th, so that a microbatch is the same on every mesh.
    """
    if count % (microbatches * shards):
        microbatches = 1  # a batch for evaluation
    return np.arange(count).reshape(microbatches, shards, -1).swapaxes(0, 1).reshape(-1)


def own_places(owners: np.ndarray, process: int, count: int) -> np.ndarray:
    """[b]: the places of a batch's rows that devices of a process compute, in order.

    Args:
      owners: the number of the process of each device of a mesh, with an axis for each of `AXES`.
      process: whose places.
      count: rows of the batch, which the axes that divide rows divide.
    """
    last = np.moveaxis(owners, AXES.index("context"), -1)
    parts = last.reshape(-1, last.shape[-1])  # of the rows; the ranks of `context` share one
    return np.flatnonzero(np.repeat((parts == process).any(axis=1), count // len(parts)))


def from_own_rows(
    rows: np.ndarray, places: np.ndarray, count: int, sharding: NamedSharding
) -> jax.Array:
    """An array [count, ...] of which each process has the rows of its devices.

    Args:
      rows: [b, ...], those at `places`.
      places: [b] int, as `own_places`.
      count: rows of the whole.
      sharding: of the whole.
    """

    def part(index: tuple[slice, ...]) -> np.ndarray:
        first, *rest = index
        wanted = np.arange(count)[first]
        return rows[np.searchsorted(places, wanted)][(slice(None), *rest)]

    return jax.make_array_from_callback((count, *rows.shape[1:]), sharding, part)


def spread(x: Any, sharding: NamedSharding) -> jax.Array:
    """Puts an array that every process has whole where it is to lie.

    What lies there already stays, and what is divided otherwise is exchanged. `jax.device_put`
    would compare the values of all processes first, array by array.
    """
    if isinstance(x, jax.Array):
        if x.sharding == sharding:
            return x
        if not (x.is_fully_addressable or x.is_fully_replicated):
            return jax.device_put(x, sharding)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])
