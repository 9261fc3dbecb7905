"""The reward of a response, and the loss of a pair (Bradley and Terry).

    r(x, y) = h_last . e          h_last: the last position, as the head sees it
                                  e: the head's row of the padding token
    L = -log sigmoid(r(x, y_chosen) - r(x, y_rejected))

A scalar head is a row of the head's matrix. That of the padding token has no other use: nothing
ever predicts padding. So a model of rewards is a model like any other, in its parameters, its
checkpoints and its files for others.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zaya_jax.config import Model
from zaya_jax.model import functional
from zaya_jax.model.functional import Biases, Params


def rewards(
    model: Model, params: Params, biases: Biases, tokens: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Rewards of responses.

    Args:
      tokens: [B, S] int32, a conversation with its response a row, padded at the end.
      lengths: [B] int32, tokens of each.

    Returns:
      [B], float32 at least; and [L, classes], tokens that chose each class of the routers.
    """
    places = jnp.arange(tokens.shape[1])
    live = places[None, :] < lengths[:, None]
    positions = jnp.where(live, places[None, :], 0)
    decoder = functional.merge(model, params, biases)
    out = decoder(tokens, live.astype(jnp.int32), positions)
    last = jnp.take_along_axis(out.hidden, (lengths - 1)[:, None, None], axis=1)
    hidden, head = decoder.head(last)
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    return hidden[:, 0].astype(wide) @ head[model.pad_id].astype(wide), out.stats.counts


class PairLoss(NamedTuple):
    """Of a batch of pairs; scalars but for the counts.

    Attributes:
      loss: nats a pair.
      right: share of the pairs in which the chosen response has the larger reward.
      margin: mean of r(chosen) - r(rejected).
      counts: [L, classes], see `rewards`.
    """

    loss: jax.Array
    right: jax.Array
    margin: jax.Array
    counts: jax.Array


def pair_loss(
    model: Model, params: Params, biases: Biases, tokens: jax.Array, lengths: jax.Array
) -> PairLoss:
    """The loss of pairs.

    Args:
      tokens: [2 B, S], the chosen responses first, then the rejected ones in the same order.
      lengths: [2 B].
    """
    found, counts = rewards(model, params, biases, tokens, lengths)
    chosen, rejected = jnp.split(found, 2)
    margin = chosen - rejected
    return PairLoss(
        jnp.mean(jax.nn.softplus(-margin)),
        jnp.mean((margin > 0).astype(margin.dtype)),
        jnp.mean(margin),
        counts,
    )
