"""One update of the policy, in three pure functions: gradient of a microbatch, sum, and update.

A batch has as many rows as its rollouts need, so the number of microbatches changes from update to
update; their shape does not. Gradients are therefore summed by calls of one compiled program, and
the optimizer moves the weights in another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.stages import Wrapped

from pallas_kernels.cross_entropy import cross_entropy
from zaya_jax import balance, lora, optim
from zaya_jax.config import Experiment
from zaya_jax.config.rl import Loss
from zaya_jax.model import functional
from zaya_jax.model.functional import Biases, Params
from zaya_jax.parallel import ONE_DEVICE, OneDevice
from zaya_jax.rl.loss import PolicyLoss, TokenSums, policy_loss
from zaya_jax.rl.packing import Rows
from zaya_jax.train import faults, telemetry
from zaya_jax.train import state as train_state
from zaya_jax.train.gradient import for_compute
from zaya_jax.train.state import TrainState


class Sums(NamedTuple):
    """What the microbatches of an update add up to, beside their gradients.

    Attributes:
      loss: of the global batch.
      tokens: see `loss.TokenSums`.
      moments: [5], sums over the sampled tokens of pi, mu, pi^2, mu^2 and pi mu, whose correlation
        says how well trainer and engine agree (report figure 6).
      counts: [L, classes] tokens that chose each class.
    """

    loss: jax.Array
    tokens: TokenSums
    moments: jax.Array
    counts: jax.Array


def policy_settings(loss: Loss) -> PolicyLoss:
    """The part of the config that `policy_loss` takes."""
    return PolicyLoss(loss.trust_region, loss.low, loss.high, loss.symmetric, loss.ratio_cap)


def make_add_gradient(
    experiment: Experiment, loss: Loss, layout: OneDevice = ONE_DEVICE
) -> Wrapped:
    """The jitted `(sums, params, frozen, biases, rows, rollouts) -> sums`, sums being
    `(gradients, Sums)`, whose buffers are reused.

    `rows` are the `Rows` of one microbatch, `rollouts` the number in the whole batch. With `routes`
    in the rows every router is pinned to them (router replay). See `zero_sums` for the first call.
    """
    gradient = _make_gradient(experiment, policy_settings(loss), layout)

    def add(
        sums: tuple[Params, Sums],
        params: Params,
        frozen: Params,
        biases: Biases,
        rows: Rows,
        rollouts: jax.Array,
    ) -> tuple[Params, Sums]:
        return jax.tree.map(jnp.add, sums, gradient(params, frozen, (biases, rollouts), rows))

    return jax.jit(add, donate_argnums=0)


def _make_gradient(
    experiment: Experiment, settings: PolicyLoss, layout: OneDevice
) -> Callable[..., tuple[Params, Sums]]:
    model = experiment.model

    def gradient(
        params: Params, frozen: Params, numbers: tuple[Biases, jax.Array], rows: Rows
    ) -> tuple[Params, Sums]:
        biases, rollouts = numbers
        trained = params if experiment.lora.rank else for_compute(model, params)
        trained = layout.gather(trained)
        routes = None if rows.routes is None else rows.routes[..., None]

        def objective(trained: Params) -> tuple[jax.Array, Sums]:
            values = layout.lazy(trained)
            if experiment.lora.rank:
                values = lora.attach(model, experiment.lora, layout.lazy(frozen), values)
            decoder = functional.merge(model, values, biases)
            out = decoder(
                rows.tokens, rows.segment_ids, rows.positions, shard=layout.shard, routes=routes
            )
            hidden, head = decoder.head(out.hidden)
            logprob = cross_entropy(
                hidden.reshape(-1, hidden.shape[-1]),
                head,
                rows.targets.reshape(-1),
                implementation=model.ops.cross_entropy,
            ).reshape(rows.targets.shape)
            loss, tokens = policy_loss(
                logprob,
                rows.rollout_logprobs,
                rows.advantages,
                rows.loss_weights,
                rollouts,
                settings,
            )
            told = layout.total((loss, tokens, _moments(logprob, rows)))
            return loss, Sums(*told, counts=out.stats.counts)

        gradients, sums = jax.grad(objective, has_aux=True)(trained)
        gradients = jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, params)
        return layout.scatter(gradients), sums

    return layout.over(gradient, params=2, results=True)


def _moments(logprob: jax.Array, rows: Rows) -> jax.Array:
    counts = rows.loss_weights > 0
    pi = jnp.exp(jnp.where(counts, jax.lax.stop_gradient(logprob), -jnp.inf))
    mu = jnp.exp(jnp.where(counts, rows.rollout_logprobs, -jnp.inf))
    return jnp.stack([jnp.sum(x) for x in (pi, mu, pi * pi, mu * mu, pi * mu)])


def zero_sums(experiment: Experiment, params: Params) -> tuple[Params, Sums]:
    """What the first microbatch is added to."""
    model = experiment.model
    scalar = jnp.zeros((), jnp.promote_types(model.param_dtype, jnp.float32))
    classes = next(iter(functional.bias_declarations(model).values())).shape[-1]
    tokens = TokenSums(*(jnp.copy(scalar) for _ in TokenSums._fields))
    counts = jnp.zeros((model.num_layers, classes), jnp.int32)
    sums = Sums(jnp.copy(scalar), tokens, jnp.zeros(5, scalar.dtype), counts)
    return jax.tree.map(jnp.zeros_like, params), sums


class Moved(NamedTuple):
    """What an update reports; scalars but for the groups.

    Attributes:
      grad_norm: global, before clipping.
      update_norms: by optimizer group.
      learning_rate: before the groups' factors.
      accepted: bool, whether it was taken; see `faults`.
    """

    grad_norm: jax.Array
    update_norms: dict[str, jax.Array]
    learning_rate: jax.Array
    accepted: jax.Array


def make_update(experiment: Experiment, layout: OneDevice = ONE_DEVICE) -> Wrapped:
    """The jitted `(state, gradients, sums) -> (state, Moved)`; the state given to it is donated.

    Balancing biases move as `balance.kind` says: stages of RL have `none`.
    """
    model, declared = experiment.model, lora.trained(experiment)
    optimizer = train_state.optimizer(experiment, layout)
    controller = train_state.controller(experiment)
    learning_rate = optim.schedule(experiment.optim, experiment.train.steps)

    def update(state: TrainState, gradients: Params, sums: Sums) -> tuple[TrainState, Moved]:
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        nudges, balance_state = controller.update(
            balance.errors(model, sums.counts), state.balance, state.biases
        )
        update_norms = telemetry.norms(declared, updates)
        norm = telemetry.total_norm(telemetry.norms(declared, gradients))
        accept = faults.accepts(
            experiment.faults, state.faults, (sums.loss, *update_norms.values()), norm
        )

        def taken(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(accept, a, b), new, old)

        moved = TrainState(
            step=state.step + 1,
            params=taken(optax.apply_updates(state.params, updates), state.params),
            biases=taken(optax.apply_updates(state.biases, nudges), state.biases),
            optimizer=taken(optimizer_state, state.optimizer),
            balance=taken(balance_state, state.balance),
            faults=faults.after(experiment.faults, state.faults, accept, norm),
            cursor=state.cursor + 1,
        )
        told = Moved(norm, update_norms, learning_rate(state.faults.accepted), accept)
        return layout.constrain(moved), told

    return jax.jit(update, donate_argnums=0)
