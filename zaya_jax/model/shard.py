"""What a part of a batch needs of the other parts.

The network is written for whole rows and all experts. Where a device holds only a part of the
batch, of its rows or of the experts, whoever calls the network hands it a `Shard` that fetches what
lies elsewhere (`zaya_jax.parallel`). The one here is the whole: it fetches nothing, and a program
with it is the program without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax

from pallas_kernels.cca_mix import State

if TYPE_CHECKING:
    from zaya_jax.model.block import RouterStats


@jax.tree_util.register_static
class Shard:
    """The whole batch on one device. A pytree without leaves, so that it passes through scans."""

    def row(self, segment_ids: jax.Array | None) -> jax.Array | None:
        """The documents of whole rows: [B, S] of this part's tokens to [B, T], in order."""
        return segment_ids

    def mix(
        self,
        op: Callable[..., tuple[jax.Array, jax.Array, jax.Array]],
        past: int,
        latents: tuple[jax.Array, ...],
        tables: tuple[jax.Array, ...],
        state: State | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """CCA's mix over time, which reads the tokens before a token.

        Args:
          op: `op(*latents, *tables, state)`: q [B, S, H, C], k and v [B, S, K, C].
          past: how many tokens back latents are read.
          latents: q, k, v_current, v_delayed, each [B, S, channels].
          tables: cos, sin [B, S, channels] and positions [B, S].
          state: of the tokens before the first, or None.
        """
        return op(*latents, *tables, state)

    def attend(
        self,
        op: Callable[..., jax.Array],
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        segment_ids: jax.Array | None,
    ) -> jax.Array:
        """Attention of this part's queries to the keys of whole rows.

        Args:
          op: `op(q, k, v, segment_ids)`, which also takes a `query_offset`.
          q: [B, S, H, C]; k, v: [B, S, K, C].
          segment_ids: [B, T], as `row` gives them.
        """
        return op(q, k, v, segment_ids)

    def experts(
        self,
        op: Callable[..., jax.Array],
        x: jax.Array,
        index: jax.Array,
        weight: jax.Array,
        gate_up: jax.Array,
        down: jax.Array,
    ) -> jax.Array:
        """The chosen experts of this part's tokens, wherever those experts are.

        Args:
          op: `op(x, index, weight, gate_up, down)`, see `pallas_kernels.grouped_matmul`.
          x: [T, D]; index, weight: [T, k], the index among all experts.
          gate_up, down: of the experts that are here.
        """
        return op(x, index, weight, gate_up, down)

    def join(self, stats: RouterStats, live: jax.Array | None) -> RouterStats:
        """Statistics of routing over all parts, from those of this one.

        Args:
          stats: of this part's tokens; counts are summed, all else but the index is averaged.
          live: [B, S] bool, this part's tokens that are no padding; None means all.
        """
        return stats


WHOLE = Shard()
