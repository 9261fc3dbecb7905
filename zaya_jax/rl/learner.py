"""The trainer of a stage: weights and optimizer, and what one batch does to them."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax import lora
from zaya_jax.config import Experiment
from zaya_jax.config.rl import RL
from zaya_jax.model import forms
from zaya_jax.model.functional import Biases, Params
from zaya_jax.rl.batch import Prepared
from zaya_jax.rl.step import Sums, make_add_gradient, make_update, zero_sums
from zaya_jax.train.state import TrainState


class Learner:
    """Holds the state between updates.

    Attributes:
      state: the trainer's.
    """

    def __init__(self, experiment: Experiment, section: RL, state: TrainState, frozen: Params):
        """Args: frozen: {}, or the base's parameters under LoRA."""
        self._experiment, self._frozen = experiment, frozen
        self.state = state
        self._add = make_add_gradient(experiment, section.loss)
        self._update = make_update(experiment)
        self._zero = jax.jit(lambda params: zero_sums(experiment, params))

    @property
    def updates(self) -> int:
        """Behind the weights."""
        return int(self.state.step)

    def learn(self, batch: Prepared) -> dict[str, Any]:
        """One update; returns what the metrics say of it."""
        sums: tuple[Params, Sums] = self._zero(self.state.params)
        rollouts = jnp.asarray(batch.rollouts, jnp.float32)
        for rows in batch.microbatches:
            sums = self._add(
                sums, self.state.params, self._frozen, self.state.biases, rows, rollouts
            )
        gradients, told = sums
        told = jax.tree.map(jnp.copy, told)
        self.state, moved = self._update(self.state, gradients, told)
        moved, told = jax.device_get((moved, told))
        tokens = max(float(told.tokens.tokens), 1.0)
        means = {
            name: float(value) / tokens
            for name, value in told.tokens._asdict().items()
            if name != "tokens"
        }
        return {
            "loss": told.loss,
            "tokens": told.tokens.tokens,
            **means,
            "pearson": correlation(told.moments, tokens),
            "grad_norm": moved.grad_norm,
            "update_norms": moved.update_norms,
            "learning_rate": moved.learning_rate,
            "accepted": moved.accepted,
        }

    def policy(self) -> tuple[Params, Biases]:
        """The weights that generate: adapters merged, layers each on its own."""
        params, experiment = self.state.params, self._experiment
        if experiment.lora.rank:
            params = lora.merge(experiment.model, experiment.lora, self._frozen, params)
        _, params, biases = forms.convert(experiment.model, params, self.state.biases, "unroll")
        return params, biases


def correlation(moments: np.ndarray, tokens: float) -> float:
    """Pearson's, of pi and mu, from their sums; see `step.Sums`. 1 where neither varies."""
    pi, mu, pi2, mu2, both = np.asarray(moments, np.float64) / tokens
    spread = (pi2 - pi * pi) * (mu2 - mu * mu)
    return float((both - pi * mu) / math.sqrt(spread)) if spread > 1e-24 else 1.0
