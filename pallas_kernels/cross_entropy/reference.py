"""Cross-entropy as it is defined, with all [T, V] logits in memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.dots import einsum


def cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    chunk: int | None = None,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.cross_entropy.cross_entropy`; `chunk` has no effect."""
    dtype = jnp.promote_types(jnp.promote_types(hidden.dtype, head.dtype), jnp.float32)
    logits = einsum("td,vd->tv", hidden, head, dtype)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[:, None], axis=1)[:, 0]
    return (chosen, jax.nn.logsumexp(logits, axis=1)) if return_lse else chosen
