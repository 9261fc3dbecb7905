"""From losses of tokens to the loss of a batch: Dr. GRPO's sum over tokens, mean over rollouts.

Dividing by a rollout's own length would make long wrong answers cheap (Liu et al. 2025). The sum
does not. The report calls it sequence-mean, token-sum, normalised (SMTSN):

    L = 1/N sum_i 1/norm sum_t l_it

N counts the rollouts of the *global* batch, across all microbatches and devices, so that packing
changes nothing. `norm` is a constant: 1 here, the longest response in verl
(`seq-mean-token-sum-norm`) and trl (`dr_grpo`). It only scales the gradient, which momentum-free
Muon does not notice.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def seq_mean_token_sum(
    losses: jax.Array, weights: jax.Array, rollouts: jax.Array | float, norm: float = 1.0
) -> jax.Array:
    """The share that these tokens have in the loss of the global batch: add those of all parts.

    Args:
      losses: any shape, of tokens, in whichever rows they are packed.
      weights: the same shape, 1 for tokens of responses, else 0. Where 0, a loss may be anything,
        NaN included.
      rollouts: N, of the whole batch.
      norm: see above.
    """
    kept = jnp.where(weights > 0, losses, 0) * weights
    return jnp.sum(kept) / (rollouts * norm)
