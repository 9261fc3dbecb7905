"""Balancing the experts' loads by biases on their selection (report eq 4 and 5), and by losses.

Each router adds a bias to its probabilities when it *chooses* experts, never when it weighs them.
A controller moves the biases against the error

    error[e] = p[e] - 1 / E,    p[e] = share of the batch's routed tokens that expert e got,

which it treats as a gradient: an overloaded expert's bias falls. A controller is therefore an
`optax.GradientTransformation` whose updates are added to the biases, and adding one is one function
and one line (docs/extending.md). The skip class is outside: it has no error, and no controller
moves a bias whose error has always been 0.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from zaya_jax.config import Balance, Model
from zaya_jax.config.kinds import BALANCERS, find
from zaya_jax.model.block import RouterStats
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


class PIDState(NamedTuple):
    """Each like the biases. error: of the last step; integral: ki times the sum of all errors,
    within its limit; derivative: of the error, filtered."""

    error: optax.Updates
    integral: optax.Updates
    derivative: optax.Updates


def pid(balance: Balance) -> optax.GradientTransformation:
    """The classical controller: the biases stand at their start minus u, where at step t

        u = kp error + I + kd D
        I <- clip(I + ki error, -integral_limit, integral_limit)
        D <- derivative_decay D + (1 - derivative_decay) (error - last error)

    with I, D and the last error 0 before the first step. That is the positional form; what is
    returned is the difference of u to the step before, so that it adds up like any other update.

    The limit is the anti-windup: while no bias can change the loads (all tokens of a batch are sure
    of one expert), I does not pile up what must be undone afterwards. A difference of biases of 1
    overrules any probability, so a limit above 1 is never of use.
    """

    def terms(state: PIDState) -> optax.Updates:
        return jax.tree.map(
            lambda e, i, d: balance.kp * e + i + balance.kd * d,
            state.error, state.integral, state.derivative,
        )  # fmt: skip

    def init(biases: optax.Params) -> PIDState:
        return PIDState(*(jax.tree.map(jnp.zeros_like, biases) for _ in range(3)))

    def update(
        errors: optax.Updates, state: PIDState, biases: optax.Params | None = None
    ) -> tuple[optax.Updates, PIDState]:
        limit, keep = balance.integral_limit, balance.derivative_decay
        following = PIDState(
            errors,
            jax.tree.map(
                lambda i, e: jnp.clip(i + balance.ki * e, -limit, limit), state.integral, errors
            ),
            jax.tree.map(
                lambda d, e, last: keep * d + (1 - keep) * (e - last),
                state.derivative, errors, state.error,
            ),
        )  # fmt: skip
        return jax.tree.map(jnp.subtract, terms(state), terms(following)), following

    return optax.GradientTransformation(init, update)


def sign(balance: Balance) -> optax.GradientTransformation:
    """DeepSeek's (arXiv 2408.15664): every bias moves by `rate` against the sign of its error."""
    return optax.chain(optax.scale_by_sign(), optax.scale(-balance.rate))


def none(balance: Balance) -> optax.GradientTransformation:
    """Biases that stay as they are."""
    return optax.set_to_zero()


def controller(balance: Balance) -> optax.GradientTransformation:
    """The controller named by `balance.kind`, for the dict of all layers' biases."""
    return find(BALANCERS, balance.kind)(balance)


def load_loss(counts: jax.Array, probability: jax.Array, experts: int) -> jax.Array:
    """Switch's load-balancing loss, E sum_e f[e] P[e] (arXiv 2101.03961 eq 4 to 6).

    f is the share of the routed tokens that expert e got, a constant to the gradient; P is its
    share of the router's probability. Both are shares among the experts: what the skip class gets
    is outside, as it is for the controllers.

    Args:
      counts: [..., classes] tokens that chose each class.
      probability: [..., classes] mean probability.
      experts: E.

    Returns:
      [...], 1 where loads and probabilities are even; 0 where no token was routed.
    """

    def shares(x: jax.Array) -> jax.Array:
        x = x[..., :experts]
        total = jnp.sum(x, axis=-1, keepdims=True)
        return x / jnp.where(total > 0, total, 1)

    f = jax.lax.stop_gradient(shares(counts.astype(probability.dtype)))
    return experts * jnp.sum(f * shares(probability), axis=-1)


def losses(balance: Balance, model: Model, stats: RouterStats) -> jax.Array | float:
    """What is added to the loss: `aux_loss` and `z_loss` times the mean of each over the layers.

    Both are of the tokens that `stats` saw: with accumulated gradients, of each microbatch apart.

    Args:
      balance: the weights.
      model: says which classes are experts.
      stats: of all layers: counts and probability [L, classes], z [L].

    Returns:
      A scalar; the constant 0.0, and nothing is computed, where both weights are 0.
    """
    total: jax.Array | float = 0.0
    if balance.aux_loss:
        each = load_loss(stats.counts, stats.probability, model.router.experts)
        total = total + balance.aux_loss * jnp.mean(each)
    if balance.z_loss:
        total = total + balance.z_loss * jnp.mean(stats.z)
    return total
