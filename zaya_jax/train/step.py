"""One training step, and one evaluation step, as pure functions."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.stages import Wrapped

from zaya_jax import balance, lora, optim
from zaya_jax.config import Experiment, Model
from zaya_jax.config.kinds import BALANCERS
from zaya_jax.data.packing import Batch
from zaya_jax.model import functional
from zaya_jax.model.functional import Biases, Params
from zaya_jax.parallel import ONE_DEVICE, OneDevice
from zaya_jax.train import faults, telemetry
from zaya_jax.train import state as train_state
from zaya_jax.train.gradient import make_gradient, sums_of
from zaya_jax.train.state import TrainState
from zaya_jax.train.telemetry import Metrics


class Rates(NamedTuple):
    """Numbers of the config that a compiled step takes as arguments, so that the trials of a search
    for them share one program. Floats, or scalars."""

    learning_rate: float | jax.Array
    balance: float | jax.Array
    kp: float | jax.Array
    ki: float | jax.Array
    kd: float | jax.Array


def rates(experiment: Experiment) -> Rates:
    """Those that a config has."""
    b = experiment.balance
    return Rates(experiment.optim.learning_rate, b.rate, b.kp, b.ki, b.kd)


def with_rates(experiment: Experiment, given: Rates) -> Experiment:
    """The config with other rates. A balancer that somebody brings keeps its own: it may look at
    them in Python."""
    optim_section = dataclasses.replace(experiment.optim, learning_rate=given.learning_rate)
    section = experiment.balance
    if section.kind in BALANCERS:
        section = dataclasses.replace(
            section, rate=given.balance, kp=given.kp, ki=given.ki, kd=given.kd
        )
    return dataclasses.replace(experiment, optim=optim_section, balance=section)


def make_train_step(experiment: Experiment, layout: OneDevice = ONE_DEVICE) -> Wrapped:
    """The jitted step `(TrainState, frozen, Batch, Rates | None) -> (TrainState, Metrics)`.

    The state given to it is donated: its buffers hold the new state afterwards. `frozen` is {}, or
    the base's parameters under LoRA; it is not donated. Without rates those of the config are
    constants of the program.

    A step that `faults.accepts` refuses leaves parameters, biases, optimizer and balancer as they
    were; `step` and `cursor` go on, for its batch is behind the run.

    layout: where all of that lies; see `zaya_jax.parallel`.
    """
    model = experiment.model
    declared, biased = lora.trained(experiment), functional.bias_declarations(model)
    gradient = make_gradient(experiment, layout)

    def step(
        state: TrainState, frozen: Params, batch: Batch, given: Rates | None = None
    ) -> tuple[TrainState, Metrics]:
        rated = experiment if given is None else with_rates(experiment, given)
        optimizer = train_state.optimizer(rated, layout)
        controller = train_state.controller(rated)
        learning_rate = optim.schedule(rated.optim, rated.train.steps)
        gradients, totals = gradient(state.params, frozen, state.biases, batch)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        nudges, balance_state = controller.update(
            balance.errors(model, totals.stats.counts), state.balance, state.biases
        )
        grad_norms = telemetry.norms(declared, gradients)
        update_norms = telemetry.norms(declared, updates)
        norm = telemetry.total_norm(grad_norms)
        numbers = (totals.loss, totals.balance_loss, totals.z_loss, *update_norms.values())
        accept = faults.accepts(experiment.faults, state.faults, numbers, norm)

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
        metrics = Metrics(
            loss=totals.loss,
            balance_loss=totals.balance_loss,
            z_loss=totals.z_loss,
            tokens=totals.tokens,
            grad_norm=norm,
            grad_norms=grad_norms,
            update_norms=update_norms,
            learning_rate=learning_rate(state.faults.accepted),
            **telemetry.router_metrics(model, totals.stats),
            **telemetry.bias_metrics(model, biased, moved.biases),
            accepted=accept,
            skipped=moved.faults.skipped,
            in_a_row=moved.faults.in_a_row,
            rollbacks=moved.faults.rollbacks,
            cursor=moved.cursor,
        )
        return layout.constrain(moved), metrics

    return jax.jit(step, donate_argnums=0)


def make_eval_step(model: Model, layout: OneDevice = ONE_DEVICE) -> Wrapped:
    """The jitted step `(params, biases, batch) -> (nats, targets, counts)`; it moves nothing.

    nats: summed, not averaged, over the weighted targets. targets: the sum of their weights.
    counts: [L, E] tokens that chose each expert. params: of the whole network.
    """

    def step(
        params: Params, biases: Biases, batch: Batch
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        values = layout.lazy(layout.gather(params))
        sums = sums_of(model, values, biases, batch, layout.shard)
        counts = sums.stats.counts[:, : model.router.experts]
        return *layout.total((sums.nats, sums.weights)), counts

    return jax.jit(layout.over(step, params=1, results=False))
