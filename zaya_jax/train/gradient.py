"""Loss and gradient of a whole batch, however many parts it is computed in."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.cross_entropy import cross_entropy
from zaya_jax import balance, lora
from zaya_jax.config import Experiment, Model
from zaya_jax.data.packing import Batch
from zaya_jax.model import functional
from zaya_jax.model.block import RouterStats
from zaya_jax.model.functional import Biases, Params
from zaya_jax.model.shard import WHOLE, Shard
from zaya_jax.parallel import ONE_DEVICE, OneDevice


class Totals(NamedTuple):
    """What a batch says of itself; scalars, float32 at least.

    Attributes:
      loss: nats per weighted target.
      tokens: weighted targets.
      balance_loss: `balance.losses`, weighted; part of what is minimised, not of `loss`.
      z_loss: `train.z_loss` times the mean of log^2 Z over weighted targets; likewise.
      stats: counts summed, all else averaged over live tokens; `index` is None.
    """

    loss: jax.Array
    tokens: jax.Array
    balance_loss: jax.Array
    z_loss: jax.Array
    stats: RouterStats


class Sums(NamedTuple):
    """Of a batch, or of a part of it; scalars, float32 at least.

    Attributes:
      nats: negative log-likelihood of the targets, weighted.
      squares: of log Z, the log-sum-exp of the logits, weighted.
      weights: of the targets.
      stats: of every router; those of all parts.
    """

    nats: jax.Array
    squares: jax.Array
    weights: jax.Array
    stats: RouterStats


def sums_of(
    model: Model, params: Params, biases: Biases, batch: Batch, shard: Shard = WHOLE
) -> Sums:
    """What the network says of a batch, or of a part of it.

    Args:
      batch: fields [B, S], see `zaya_jax.data.Batch`.
      shard: which part it is.
    """
    decoder = functional.merge(model, params, biases)
    out = decoder(batch.tokens, batch.segment_ids, batch.positions, shard=shard)
    hidden, embedding = decoder.head(out.hidden)
    logprob, lse = cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        embedding,
        batch.targets.reshape(-1),
        return_lse=True,
        implementation=model.ops.cross_entropy,
    )
    weights = batch.loss_weights.reshape(-1).astype(logprob.dtype)
    nats, squares = (jnp.sum(x * weights) for x in (-logprob, lse**2))
    return Sums(nats, squares, jnp.sum(weights), out.stats)


def for_compute(model: Model, params: Params) -> Params:
    """Master weights as the network computes with them.

    Matrices are cast to a narrower activation dtype here, once a step: inside the network the cast
    would be done anew for every microbatch and every rematerialised layer. The result is the same,
    for no other group is used in that dtype alone. A wider one is left to the network, layer by
    layer.
    """
    dtype = jnp.dtype(model.activation_dtype)
    declared = functional.declarations(model)

    def cast(path: str, value: jax.Array) -> jax.Array:
        matrix = declared[path].group == "matrix"
        return value.astype(dtype) if matrix and dtype.itemsize < value.dtype.itemsize else value

    return {path: cast(path, value) for path, value in params.items()}


def make_gradient(
    experiment: Experiment, layout: OneDevice = ONE_DEVICE
) -> Callable[[Params, Params, Biases, Batch], tuple[Params, Totals]]:
    """The function `(params, frozen, biases, batch) -> (gradients, Totals)`.

    The gradient is that of the whole batch's loss, whatever `train.microbatches` is: each part adds
    its nats over the targets of *all* parts, which are known beforehand, so that a sum is all there
    is left to do. It accumulates in the dtype of `params`. Only `balance.aux_loss`, a product of
    two means, is that of each part's own loads, weighted with its share of the live tokens.

    On a mesh each device differentiates its own share of that loss; the shares add up to it, and so
    do the gradients, when `layout.scatter` sums them.

    params: what is trained; frozen: {} or, under LoRA, the parameters of the base.
    """
    model, parts, section = experiment.model, experiment.train.microbatches, experiment.balance

    def gradient(
        params: Params, frozen: Params, biases: Biases, batch: Batch
    ) -> tuple[Params, Totals]:
        trained = params if experiment.lora.rank else for_compute(model, params)
        trained = layout.gather(trained)
        tokens, live = layout.total((jnp.sum(batch.loss_weights), jnp.sum(batch.segment_ids > 0)))
        # A batch of nothing but padding has loss 0 and no gradient.
        tokens, live = jnp.where(tokens > 0, tokens, 1), jnp.maximum(live, 1)

        def objective(trained: Params, part: Batch) -> tuple[jax.Array, Totals]:
            values = layout.lazy(trained)
            if experiment.lora.rank:
                values = lora.attach(model, experiment.lora, layout.lazy(frozen), values)
            sums = sums_of(model, values, biases, part, layout.shard)
            stats = sums.stats
            share = layout.total(jnp.sum(part.segment_ids > 0)) / live
            loss = sums.nats / tokens.astype(sums.nats.dtype)
            z_loss = experiment.train.z_loss * sums.squares / tokens.astype(loss.dtype)
            balancing = share * balance.losses(section, model, stats)
            shares = stats._replace(counts=None, index=None)
            averaged = jax.tree.map(lambda x: x * share.astype(x.dtype), shares)
            whole_loss, weights, z = layout.total((loss, sums.weights, z_loss))
            totals = Totals(
                whole_loss, weights, balancing, z, averaged._replace(counts=stats.counts)
            )
            return loss + z_loss + layout.portion(balancing), totals

        def of_part(part: Batch) -> tuple[Params, Totals]:
            gradients, totals = jax.grad(objective, has_aux=True)(trained, part)
            return jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, params), totals

        if parts == 1:
            gradients, totals = of_part(batch)
            return layout.scatter(gradients), totals
        split = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        zero = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype),
            jax.eval_shape(of_part, jax.tree.map(lambda x: x[0], split)),
        )

        def add(sums, part: Batch):
            return jax.tree.map(jnp.add, sums, of_part(part)), None

        gradients, totals = jax.lax.scan(add, zero, split)[0]
        return layout.scatter(gradients), totals

    return layout.over(gradient, params=2, results=True)
