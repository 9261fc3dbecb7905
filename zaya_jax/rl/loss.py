"""The policy loss: truncated importance weights, the trust region, and the sum over tokens. No KL.

    L = -1/N sum_i sum_t  M_t  sg(min(pi_t / mu_t, c))  A_t  log pi_t

Its gradient is that of the surrogate `-M (pi/mu) A` where the ratio is below c. Log-probabilities
come from `pallas_kernels.cross_entropy`, which the gradient flows back through.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zaya_jax.errors import UserError
from zaya_jax.rl.aggregation import seq_mean_token_sum
from zaya_jax.rl.dppo import DELTA, binary_tv, binary_tv_mask

LARGEST_LOG_RATIO = 20.0
"""Beyond it exp would overflow in low precision; log-ratios are clamped to its range."""


@dataclasses.dataclass(frozen=True)
class PolicyLoss:
    """What the loss is made of.

    Attributes:
      trust_region: whether DPPO's mask is applied.
      low, high, symmetric: of the mask, see `dppo.binary_tv_mask`.
      ratio_cap: c; verl has 20, Stable-RL 10. inf is none.
      norm: of `aggregation.seq_mean_token_sum`.

    Raises:
      UserError: a value outside its range.
    """

    trust_region: bool = True
    low: float = DELTA
    high: float = DELTA
    symmetric: bool = False
    ratio_cap: float = 20.0
    norm: float = 1.0

    def __post_init__(self):
        for name in ("low", "high"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} = {getattr(self, name)}: expected 0 to 1")
        for name in ("ratio_cap", "norm"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} = {getattr(self, name)}: expected more than 0")


class TokenSums(NamedTuple):
    """Sums over the tokens of responses, so that parts of a batch add up; scalars.

    Attributes:
      tokens: how many.
      masked: outside the trust region.
      capped: with a ratio above the cap.
      log_ratio: `log pi - log mu`; minus its mean estimates KL(mu || pi), noisily (K1).
      kl: `pi/mu - 1 - log(pi/mu)`, whose mean estimates the same, never below 0 (K3).
      tv: `|pi - mu|`.
      entropy: `-log pi`, whose mean estimates the entropy, if pi is near mu.
    """

    tokens: jax.Array
    masked: jax.Array
    capped: jax.Array
    log_ratio: jax.Array
    kl: jax.Array
    tv: jax.Array
    entropy: jax.Array


def policy_loss(
    logprob: jax.Array,
    rollout_logprob: jax.Array,
    advantages: jax.Array,
    weights: jax.Array,
    rollouts: jax.Array | float,
    settings: PolicyLoss,
) -> tuple[jax.Array, TokenSums]:
    """The share of some tokens in the loss of the global batch; differentiable in `logprob`.

    Args:
      logprob: any shape, of the sampled tokens under the policy that is trained.
      rollout_logprob: the same shape, as recorded when they were sampled.
      advantages: the same shape, each rollout's spread over its tokens.
      weights: the same shape, 1 for tokens of responses, else 0; there the others may be anything.
      rollouts: N of the global batch.
      settings: mask, cap and norm.

    Returns:
      The loss, to be added to that of the other parts, and sums for the metrics.
    """
    # What is not learnt is replaced before it is computed with: where(w, NaN, 0) has NaN gradients.
    counts = weights > 0
    logprob = jnp.where(counts, logprob, 0)
    rollout_logprob = jnp.where(counts, rollout_logprob, 0)
    advantages = jnp.where(counts, advantages, 0)

    log_ratio = jnp.clip(logprob - rollout_logprob, -LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)
    log_ratio = jax.lax.stop_gradient(log_ratio)
    ratio = jnp.exp(log_ratio)
    kept = jnp.ones_like(counts)
    if settings.trust_region:
        kept = binary_tv_mask(
            logprob,
            rollout_logprob,
            advantages,
            low=settings.low,
            high=settings.high,
            symmetric=settings.symmetric,
        )
    losses = -jnp.minimum(ratio, settings.ratio_cap) * advantages * logprob
    losses = jnp.where(kept, losses, 0)
    loss = seq_mean_token_sum(losses, weights, rollouts, settings.norm)

    def total(values: jax.Array) -> jax.Array:
        return jnp.sum(jax.lax.stop_gradient(jnp.where(counts, values, 0)).astype(loss.dtype))

    sums = TokenSums(
        tokens=total(counts),
        masked=total(~kept),
        capped=total(ratio > settings.ratio_cap),
        log_ratio=total(log_ratio),
        kl=total(ratio - 1 - log_ratio),
        tv=total(binary_tv(logprob, rollout_logprob)),
        entropy=total(-logprob),
    )
    return loss, sums
