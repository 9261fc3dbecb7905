"""Everything that a training step changes."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import optax

from zaya_jax import balance, optim
from zaya_jax.config import Experiment
from zaya_jax.model import functional
from zaya_jax.model.functional import Biases, Params


@flax.struct.dataclass
class TrainState:
    """A pytree; with the config it determines the rest of the run.

    Batches are a function of the step, so `step` is the data cursor too.

    Attributes:
      step: int32 scalar, steps done.
      params: what the optimizer moves.
      biases: what the balancer moves.
      optimizer: state of `optim.optimizer`.
      balance: state of `balance.controller`.
    """

    step: jax.Array
    params: Params
    biases: Biases
    optimizer: optax.OptState
    balance: optax.OptState


def from_weights(experiment: Experiment, params: Params, biases: Biases) -> TrainState:
    """A state at step 0 that starts from given weights."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        biases=biases,
        optimizer=optim.optimizer(experiment).init(params),
        balance=balance.controller(experiment.balance).init(biases),
    )


def init(experiment: Experiment) -> TrainState:
    """The state at step 0; a pure function of the experiment (`train.seed`)."""
    params, biases = functional.init(experiment.model, jax.random.key(experiment.train.seed))
    return from_weights(experiment, params, biases)


def abstract(experiment: Experiment) -> TrainState:
    """Shapes and dtypes of the state, nothing allocated."""
    return jax.eval_shape(lambda: init(experiment))
