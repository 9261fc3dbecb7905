"""Everything that a training step changes."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import optax

from zaya_jax import balance, lora, optim
from zaya_jax.config import Experiment
from zaya_jax.model import functional
from zaya_jax.model.functional import Biases, Params
from zaya_jax.parallel import ONE_DEVICE, OneDevice
from zaya_jax.train import faults as faults_lib
from zaya_jax.train.faults import FaultState


@flax.struct.dataclass
class TrainState:
    """A pytree; with the config, and the base under LoRA, it determines the rest of the run.

    Attributes:
      step: int32 scalar, optimizer steps attempted: taken and refused ones, of this course of the
        run (a rollback sets it back).
      params: what the optimizer moves: all parameters, or under LoRA the adapters.
      biases: what the balancer moves; they stay as they are under LoRA.
      optimizer: state of `optim.optimizer`.
      balance: state of `balance.controller`.
      faults: steps taken and refused.
      cursor: int32 scalar, number of the next batch. It is `step` until a rollback, which goes back
        in steps but not in batches.
    """

    step: jax.Array
    params: Params
    biases: Biases
    optimizer: optax.OptState
    balance: optax.OptState
    faults: FaultState
    cursor: jax.Array


def optimizer(
    experiment: Experiment, layout: OneDevice = ONE_DEVICE
) -> optax.GradientTransformation:
    """What moves `TrainState.params`."""
    return optim.optimizer(
        experiment.optim, experiment.train.steps, lora.trained(experiment), layout.matrices
    )


def controller(experiment: Experiment) -> optax.GradientTransformation:
    """What moves `TrainState.biases`. Adapters leave the base's routing as it was trained."""
    section = experiment.balance
    if experiment.lora.rank:
        section = dataclasses.replace(section, kind="none")
    return balance.controller(section)


def from_weights(experiment: Experiment, params: Params, biases: Biases) -> TrainState:
    """A state at step 0 that starts from given values of what is trained."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        biases=biases,
        optimizer=optimizer(experiment).init(params),
        balance=controller(experiment).init(biases),
        faults=faults_lib.init(),
        cursor=jnp.zeros((), jnp.int32),
    )


def init(experiment: Experiment) -> TrainState:
    """The state at step 0; a pure function of the experiment (`train.seed`).

    Under LoRA it has new adapters and a new network's biases: `setup.first_state` takes the base's.
    """
    key = jax.random.key(experiment.train.seed)
    params, biases = functional.init(experiment.model, key)
    if experiment.lora.rank:
        params = lora.init(experiment.model, experiment.lora, key)
    return from_weights(experiment, params, biases)


def abstract(experiment: Experiment) -> TrainState:
    """Shapes and dtypes of the state, nothing allocated."""
    return jax.eval_shape(lambda: init(experiment))
