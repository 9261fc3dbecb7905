"""The part of a batch that one device of a mesh has, as the model sees it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from zaya_jax.model.block import RouterStats
from zaya_jax.model.shard import Shard
from zaya_jax.parallel import context, expert
from zaya_jax.parallel.expert import Exchange


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class MeshShard(Shard):
    """Rows, tokens and experts of one device, inside `shard_map`.

    Attributes:
      axes: mesh axes that have more than one device.
      ranks: devices of the axis `context`.
      exchange: of tokens with the devices of the axis `expert`; None where that has one.
    """

    axes: tuple[str, ...]
    ranks: int
    exchange: Exchange | None

    def row(self, segment_ids):
        """See `Shard`."""
        if self.ranks == 1 or segment_ids is None:
            return segment_ids
        return context.whole_rows(segment_ids, self.ranks)

    def mix(self, op, past, latents, tables, state):
        """See `Shard`; there is no state, for nothing is cached."""
        if self.ranks == 1:
            return super().mix(op, past, latents, tables, state)
        return context.mix(op, past, latents, tables, self.ranks)

    def attend(self, op, q, k, v, segment_ids):
        """See `Shard`."""
        if self.ranks == 1:
            return super().attend(op, q, k, v, segment_ids)
        return context.attend(op, q, k, v, segment_ids, self.ranks)

    def experts(self, op, x, index, weight, gate_up, down):
        """See `Shard`."""
        if self.exchange is None:
            return super().experts(op, x, index, weight, gate_up, down)
        return expert.experts(self.exchange, op, x, index, weight, gate_up, down)

    def join(self, stats: RouterStats, live: jax.Array | None) -> RouterStats:
        """See `Shard`. One collective for all layers: means are weighted with their tokens."""
        if live is None:
            live = jnp.ones(stats.index.shape[1:3], bool)
        tokens = jnp.sum(live, dtype=jnp.int32)
        everywhere = jnp.maximum(lax.psum(tokens, self.axes), 1)

        def share_of(x: jax.Array) -> jax.Array:
            return x * (tokens.astype(x.dtype) / everywhere.astype(x.dtype))

        weighted = jax.tree.map(share_of, stats._replace(counts=None, index=None))
        counts, means = lax.psum((stats.counts, weighted), self.axes)
        return means._replace(counts=counts, index=stats.index)
