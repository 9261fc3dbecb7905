"""The definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.dots import matmul
from pallas_kernels.residual_norm import rms_norm
from pallas_kernels.router.types import Routing


def _affine(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """x @ weight + bias, rounded to x's dtype once."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return (matmul(x, weight, wide) + bias).astype(x.dtype)


def router(x, state, weights, biases, live=None, *, top_k, eps, norm_dtype, softmax_dtype):
    """See the package."""
    dtype = x.dtype
    w = jax.tree.map(lambda p: p.astype(dtype), weights)
    hidden, next_state = x, None
    if w.down is not None:
        hidden = _affine(x, w.down, w.down_bias)
        if state is not None and w.state_scale is not None:
            hidden = hidden + state * w.state_scale
        next_state = hidden
        hidden = rms_norm(hidden, weights.norm, eps=eps, norm_dtype=norm_dtype, out_dtype=dtype)
        for weight, bias in ((w.fc1, w.fc1_bias), (w.fc2, w.fc2_bias), *(w.deeper or ())):
            if weight is not None:
                hidden = jax.nn.gelu(_affine(hidden, weight, bias), approximate=False)
    logits = matmul(hidden, w.out, softmax_dtype)
    return choose(
        logits.astype(softmax_dtype), next_state, biases, live, top_k=top_k, weight_dtype=dtype
    )


def choose(
    logits: jax.Array,
    state: jax.Array | None,
    biases: jax.Array,
    live: jax.Array | None = None,
    *,
    top_k: int,
    weight_dtype,
) -> Routing:
    """The router's last step: softmax, biased top-k, counts (report eq 4).

    Args:
      logits: [T, classes] in the dtype that the softmax is to have.
      state: [T, R] for the next layer, handed on as it is.
      biases, live: as of the op.
      weight_dtype: of the choices' weights.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)

    # The bias moves the choice, never the weight, and no gradient flows through the choice.
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    biased = jax.lax.stop_gradient(probabilities).astype(wide) + biases.astype(wide)
    if top_k == 1:
        index = jnp.argmax(biased, axis=-1, keepdims=True).astype(jnp.int32)
    else:
        index = jax.lax.top_k(biased, top_k)[1].astype(jnp.int32)
    weight = jnp.take_along_axis(probabilities, index, axis=-1).astype(weight_dtype)

    classes = biased.shape[-1]
    if live is not None:
        index = jnp.where(live[:, None], index, classes)
    counts = jnp.sum(index.reshape(-1, 1) == jnp.arange(classes), axis=0, dtype=jnp.int32)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    return Routing(index, weight, state, probabilities, counts, log_normalizer)
