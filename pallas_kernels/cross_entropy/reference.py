"""Cross-entropy as it is defined, with all [T, V] logits in memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cross_entropy(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, *, chunk: int | None = None
) -> jax.Array:
    """See `pallas_kernels.cross_entropy.cross_entropy`; `chunk` has no effect."""
    dtype = jnp.promote_types(jnp.promote_types(hidden.dtype, head.dtype), jnp.float32)
    logits = jnp.einsum("td,vd->tv", hidden, head, preferred_element_type=dtype)
    logprob = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(logprob, targets[:, None], axis=1)[:, 0]
