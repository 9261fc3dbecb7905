"""One training step, and one evaluation step, as pure functions."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.stages import Wrapped

from pallas_kernels.cross_entropy import cross_entropy
from zaya_jax import balance, optim
from zaya_jax.config import Experiment, Model
from zaya_jax.data.packing import Batch
from zaya_jax.model import functional
from zaya_jax.model.block import RouterStats
from zaya_jax.model.functional import Biases, Params
from zaya_jax.train.state import TrainState


class Metrics(NamedTuple):
    """What a step reports; float32 scalars but for those with a layer axis L.

    Attributes:
      loss: nats per weighted target.
      tokens: weighted targets in the batch.
      grad_norm: global, before clipping.
      learning_rate: of this step.
      load_entropy: [L] entropy of the experts' loads over log E: 1 is a perfect balance,
        and what a single expert has.
      max_load: [L] largest share of the routed tokens that one expert got.
      skip_share: [L] share of all live tokens that took the skip class.
      routing_entropy: [L] mean entropy of a token's own distribution over the classes, in nats.
      load: [L, E] share of the routed tokens that each expert got.
      finite: bool, whether the weights after the step are numbers; the loss is of those before it.
    """

    loss: jax.Array
    tokens: jax.Array
    grad_norm: jax.Array
    learning_rate: jax.Array
    load_entropy: jax.Array
    max_load: jax.Array
    skip_share: jax.Array
    routing_entropy: jax.Array
    load: jax.Array
    finite: jax.Array


def summed_nats(
    model: Model, params: Params, biases: Biases, batch: Batch
) -> tuple[jax.Array, jax.Array, RouterStats]:
    """Negative log-likelihood of a batch.

    Args:
      batch: fields [B, S], see `zaya_jax.data.Batch`.

    Returns:
      Weighted sum of nats over the targets, the sum of their weights (scalars, float32 at least),
      and the statistics of every router.
    """
    decoder = functional.merge(model, params, biases)
    out = decoder(batch.tokens, batch.segment_ids, batch.positions)
    hidden, embedding = decoder.head(out.hidden)
    logprob = cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]),
        embedding,
        batch.targets.reshape(-1),
        implementation=model.ops.cross_entropy,
    )
    weights = batch.loss_weights.reshape(-1).astype(logprob.dtype)
    return -jnp.sum(logprob * weights), jnp.sum(weights), out.stats


def make_train_step(experiment: Experiment) -> Wrapped:
    """The jitted step `(TrainState, Batch) -> (TrainState, Metrics)`.

    The state given to it is donated: its buffers hold the new state afterwards.
    """
    model = experiment.model
    optimizer, controller = optim.optimizer(experiment), balance.controller(experiment.balance)
    learning_rate = optim.schedule(experiment.optim, experiment.train.steps)

    def loss_of(params: Params, biases: Biases, batch: Batch):
        nats, tokens, stats = summed_nats(model, params, biases, batch)
        # A batch of nothing but padding has loss 0 and no gradient.
        return nats / jnp.where(tokens > 0, tokens, 1), (tokens, stats)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        (loss, (tokens, stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            state.params, state.biases, batch
        )
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        nudges, balance_state = controller.update(
            balance.errors(model, stats.counts), state.balance, state.biases
        )
        moved = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            biases=optax.apply_updates(state.biases, nudges),
            optimizer=optimizer_state,
            balance=balance_state,
        )
        metrics = Metrics(
            loss=loss,
            tokens=tokens,
            grad_norm=optax.tree.norm(gradients),
            learning_rate=learning_rate(state.step),
            finite=jnp.isfinite(optax.tree.norm((moved.params, moved.biases))),
            **router_metrics(model, stats),
        )
        return moved, metrics

    return jax.jit(step, donate_argnums=0)


def make_eval_step(model: Model) -> Wrapped:
    """The jitted step `(params, biases, batch) -> (nats, targets, counts)`; it moves nothing.

    nats: summed, not averaged, over the weighted targets. targets: the sum of their weights.
    counts: [L, E] tokens that chose each expert.
    """

    def step(
        params: Params, biases: Biases, batch: Batch
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        nats, targets, stats = summed_nats(model, params, biases, batch)
        return nats, targets, stats.counts[:, : model.router.experts]

    return jax.jit(step)


def router_metrics(model: Model, stats: RouterStats) -> dict[str, jax.Array]:
    """The fields of `Metrics` that speak of routers, from counts [L, classes]."""
    E = model.router.experts
    counts = stats.counts.astype(jnp.float32)
    routed, everything = jnp.sum(counts[:, :E], axis=1), jnp.sum(counts, axis=1)
    load = counts[:, :E] / jnp.maximum(routed, 1)[:, None]
    entropy = jnp.sum(jnp.where(load > 0, -load * jnp.log(load), 0), axis=1)
    return {
        "load": load,
        "load_entropy": entropy / math.log(E) if E > 1 else jnp.ones_like(entropy),
        "max_load": jnp.max(load, axis=1),
        "skip_share": (everything - routed) / jnp.maximum(everything, 1),
        "routing_entropy": stats.entropy,
    }
