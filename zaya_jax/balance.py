"""Balancing the experts' loads by biases on their selection (report eq 4 and 5).

Each router adds a bias to its probabilities when it *chooses* experts, never when it weighs them.
A controller moves the biases against the error

    error[e] = p[e] - 1 / E,    p[e] = share of the batch's routed tokens that expert e got,

which it treats as a gradient: an overloaded expert's bias falls. A controller is therefore an
`optax.GradientTransformation` whose updates are added to the biases, and adding one is one function
and one line in `CONTROLLERS`. The skip class is outside: it has no error, hence its bias stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from zaya_jax.config import Balance, Model
from zaya_jax.model.functional import Biases, bias_declarations


def error(counts: jax.Array, experts: int) -> jax.Array:
    """The error of eq 5.

    Args:
      counts: [..., classes] tokens of the *global* batch that chose each class. Padding is not
        among them. Classes after the first `experts` (the skip class) are outside the balancer.
      experts: E.

    Returns:
      [..., classes] float32, p - 1/E where p is the share of the tokens that went to experts, and
      0 outside. It sums to 0; with no routed token it is 0.
    """
    routed = counts[..., :experts].astype(jnp.float32)
    total = jnp.sum(routed, axis=-1, keepdims=True)
    found = jnp.where(total > 0, routed / jnp.maximum(total, 1) - 1 / experts, 0)
    outside = [(0, 0)] * (counts.ndim - 1) + [(0, counts.shape[-1] - experts)]
    return jnp.pad(found, outside)


def errors(model: Model, counts: jax.Array) -> Biases:
    """The error of every layer, under the path and in the shape of its biases.

    Args:
      model: says which layers' biases are stacked.
      counts: [L, classes], see `error`.
    """
    found = error(counts, model.router.experts)
    return {
        path: found[jnp.array(declaration.layers)].astype(declaration.dtype)
        for path, declaration in bias_declarations(model).items()
    }


def adamw(balance: Balance) -> optax.GradientTransformation:
    """The report's controller: AdamW on the biases, without decay.

    Its rate is in units of probability. The report does not give one; 1e-3 settles in some hundred
    steps, and from 3e-3 on a confident router makes the biases swing.
    """
    return optax.adamw(balance.rate, balance.b1, balance.b2, balance.eps, weight_decay=0.0)


def none(balance: Balance) -> optax.GradientTransformation:
    """Biases that stay as they are."""
    return optax.set_to_zero()


CONTROLLERS: Mapping[str, Callable[[Balance], optax.GradientTransformation]] = {
    "adamw": adamw,
    "none": none,
}


def controller(balance: Balance) -> optax.GradientTransformation:
    """The controller named by `balance.kind`, for the dict of all layers' biases."""
    return CONTROLLERS[balance.kind](balance)
