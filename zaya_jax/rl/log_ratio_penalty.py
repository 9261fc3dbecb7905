"""The log-ratio penalty that the report warns of (eq. 17 to 22); for study, never a default.

Subtracting the KL estimate K1 from the reward, `A = r - beta sum_t l_t`, looks harmless. Where
generation runs ahead of training in flight, l_t is the log-ratio to the policy that generated *that
token*, which is a stale one:

    l_t = log pi(y_t) - log pi_gen,c(t)(y_t),     E_gen[l_t] = -KL(pi_gen || pi) <= 0

so the expected penalty is `+beta sum_t KL > 0`: a bonus that grows with the length of a rollout and
the staleness of its chunks, whatever the answer is. Two mitigations, neither of them used in
production, where there is no KL term at all:

* local: a token is charged with the sum over its own chunk c only, `S_c = sum_{t in c} l_t`;
* by staleness: S_c is divided by `g(Delta_c) = max(1, Delta_c)`, Delta_c being the updates between
  the chunk's policy and the one that is trained.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def chunks(rollouts: jax.Array, versions: jax.Array) -> jax.Array:
    """Numbers of chunks: runs of tokens of one rollout and one policy version.

    Args:
      rollouts: [T] integer, which rollout a token is of; a rollout's tokens are side by side.
      versions: [T] integer, the policy that sampled it.

    Returns:
      [T] int32, from 0 up.
    """
    new = (rollouts[1:] != rollouts[:-1]) | (versions[1:] != versions[:-1])
    return jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(new, dtype=jnp.int32)])


def log_ratio_penalty(
    log_ratios: jax.Array,
    rollouts: jax.Array,
    versions: jax.Array,
    weights: jax.Array,
    current: jax.Array | int,
    *,
    local: bool = False,
    by_staleness: bool = False,
) -> jax.Array:
    """What is charged to each token: `A_t = r - beta * log_ratio_penalty(...)`.

    Args:
      log_ratios: [T], l_t.
      rollouts: [T] integer, see `chunks`.
      versions: [T] integer, see `chunks`.
      weights: [T], 1 for tokens of responses, else 0.
      current: version of the policy that is trained.
      local: charge a chunk with its own sum, S_c, and not with that of its rollout.
      by_staleness: divide each chunk's sum by max(1, current - version).

    Returns:
      [T], the same for all tokens of a rollout (or of a chunk); a constant to the gradient.
    """
    terms = jax.lax.stop_gradient(jnp.where(weights > 0, log_ratios, 0))
    if by_staleness:
        terms = terms / jnp.maximum(1, current - versions)
    spans = chunks(rollouts, versions if local else jnp.zeros_like(versions))
    sums = jax.ops.segment_sum(terms, spans, num_segments=spans.shape[0])
    return sums[spans]
