"""Orthogonalising matrices of which every device has a slice.

At rest a stack of N matrices [N, m, n] is cut across m or n over g devices. An all-to-all trades
that for N / g whole matrices a device, each orthogonalises its own, and a second one trades back:
no device does another's work, and each sends no more than its slice, twice. N that g does not
divide is filled up with zeros, whose update is zero. Experts stay on their devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax

from zaya_jax.parallel.rules import Place


def matrices(
    mesh: jax.sharding.Mesh,
    places: Mapping[str, Place],
    in_pieces: Callable[..., jax.Array],
) -> Callable[..., jax.Array]:
    """What `scale_by_muon` runs for each leaf: `(path, function, x, *more) -> function(x, *more)`.

    Args:
      mesh: on which leaves lie as `places` say.
      in_pieces: how a device goes through its matrices, `(function, x, *more)`.
    """

    def run(path: str, function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
        place = places[path]
        axes = place.in_use + place.once
        ways = math.prod(mesh.shape[axis] for axis in axes)

        def local(*slices: jax.Array) -> jax.Array:
            if ways == 1 or place.divided is None:
                return in_pieces(function, *slices)
            shape, cut = slices[0].shape, place.divided + 3  # of [N, m, n]
            count = math.prod(shape[:-2])
            filling = [(0, -count % ways), (0, 0), (0, 0)]

            def to_whole(x: jax.Array) -> jax.Array:
                x = jnp.pad(x.reshape(count, *shape[-2:]), filling)
                return lax.all_to_all(x, axes, split_axis=0, concat_axis=cut, tiled=True)

            whole = in_pieces(function, *map(to_whole, slices))
            found = lax.all_to_all(whole, axes, split_axis=cut, concat_axis=0, tiled=True)
            return found[:count].reshape(shape)

        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=(place.rest,) * len(arrays),
            out_specs=place.rest,
            check_vma=False,
        )(*arrays)

    return run
