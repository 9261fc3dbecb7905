"""DPPO's trust region, Binary-TV (Qi et al., arXiv 2602.04879): which tokens may still learn.

PPO clips by the ratio pi/mu, which is harsh on rare tokens and lenient on common ones. DPPO bounds
the divergence itself: the total variation between pi and mu, seen as a coin that shows the sampled
token or not, is |pi(y) - mu(y)|.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

DELTA = 0.1
"""The report's threshold."""


def binary_tv(logprob: jax.Array, rollout_logprob: jax.Array) -> jax.Array:
    """`D_t = |pi(y_t) - mu(y_t)|` of the sampled tokens; any shape, in [0, 1]."""
    return jnp.abs(jnp.exp(logprob) - jnp.exp(rollout_logprob))


def binary_tv_mask(
    logprob: jax.Array,
    rollout_logprob: jax.Array,
    advantages: jax.Array,
    *,
    low: float = DELTA,
    high: float = DELTA,
    symmetric: bool = False,
) -> jax.Array:
    """Which tokens contribute to the gradient.

    Masked, as eq. 12 of the paper has it, is a token that is outside the region and would go
    farther: `M_t = 0 if (A > 0 and pi - mu > high) or (A < 0 and mu - pi > low), else 1`.

    Args:
      logprob: any shape, of the sampled tokens under the policy that is trained.
      rollout_logprob: under the policy as it sampled them: recorded then, not computed again.
      advantages: broadcast against the tokens.
      low: threshold for tokens that became less likely.
      high: threshold for tokens that became more likely.
      symmetric: mask every token outside the region, whichever way it is to go. So the report's
        words can be read; its reference is the asymmetric form.

    Returns:
      bool, True where a token counts. No gradient flows through it.
    """
    moved = jax.lax.stop_gradient(jnp.exp(logprob) - jnp.exp(rollout_logprob))
    too_high, too_low = moved > high, moved < -low
    if symmetric:
        return ~(too_high | too_low)
    return ~((too_high & (advantages > 0)) | (too_low & (advantages < 0)))
