"""Cross-entropy over tiles of the logits: portable, and never [T, V] in memory.

The forward pass visits tiles of (vocabulary chunk) x (token chunk) and keeps, per token, a running
maximum, a running sum of exponentials and the target's logit (online log-sum-exp). The backward
pass recomputes each tile from the saved log-sum-exp. Vocabulary is the outer loop in both, so a
chunk of the head is cut out once, and the chunk's gradient is complete when its turn ends.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.dots import einsum, matmul

TOKENS = 1024  # of a tile, where the caller does not say
VOCABULARY = 2048  # of a tile


def cross_entropy(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    chunk: int | None = None,
    return_lse: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """See `pallas_kernels.cross_entropy.cross_entropy`."""
    logprob, lse = _statistics(hidden, head, targets, chunk or TOKENS)
    return (logprob, lse) if return_lse else logprob


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _statistics(hidden, head, targets, chunk):
    """`(log-probability of the target [T], log-sum-exp of the logits [T])`, both differentiable."""
    return _forward(hidden, head, targets, chunk)[0]


def _forward(hidden, head, targets, chunk):
    dtype = _accumulator(hidden, head)
    hidden_chunks, target_chunks = _split(hidden, chunk), _split(targets, chunk)

    def vocabulary_chunk(i, carry):
        first, columns, fresh = _columns(i, head.shape[0])
        part = lax.dynamic_slice_in_dim(head, first, columns.shape[0])

        def token_chunk(args):
            hidden, targets, (maximum, total, chosen) = args
            logits = einsum("td,vd->tv", hidden, part, dtype)
            logits = jnp.where(fresh, logits, -jnp.inf)
            new_maximum = jnp.maximum(maximum, logits.max(1))
            total = total * jnp.exp(maximum - new_maximum)
            total += jnp.exp(logits - new_maximum[:, None]).sum(1)
            here = targets - first
            mine = jnp.clip(here, 0, columns.shape[0] - 1)
            logit = jnp.take_along_axis(logits, mine[:, None], axis=1)[:, 0]
            chosen = jnp.where(here == mine, jnp.maximum(chosen, logit), chosen)
            return new_maximum, total, chosen

        return lax.map(token_chunk, (hidden_chunks, target_chunks, carry))

    low = jnp.full(target_chunks.shape, -jnp.inf, dtype)
    turns = -(-head.shape[0] // VOCABULARY)
    maximum, total, chosen = lax.fori_loop(
        0, turns, vocabulary_chunk, (low, jnp.zeros_like(low), low)
    )
    size = targets.shape[0]
    lse = (maximum + jnp.log(total)).reshape(-1)[:size]
    return (chosen.reshape(-1)[:size] - lse, lse), (hidden, head, targets, lse)


def _backward(chunk, saved, gradients):
    hidden, head, targets, lse = saved
    d_logprob, d_lse = gradients
    dtype = _accumulator(hidden, head)
    # logit[v] gets d_logprob * (1[v is the target] - p[v]) + d_lse * p[v].
    tokens = (hidden, targets, lse, d_logprob, d_lse - d_logprob)
    chunks = tuple(_split(array, chunk) for array in tokens)

    def vocabulary_chunk(i, carry):
        d_hidden, d_head = carry
        first, columns, fresh = _columns(i, head.shape[0])
        part = lax.dynamic_slice_in_dim(head, first, columns.shape[0])

        def token_chunk(d_part, args):
            (hidden, targets, lse, on_target, on_all), d_hidden = args
            logits = einsum("td,vd->tv", hidden, part, dtype)
            d_logits = jnp.exp(logits - lse[:, None]) * on_all[:, None]
            d_logits += jnp.where(columns == targets[:, None], on_target[:, None], 0)
            d_logits = jnp.where(fresh, d_logits, 0).astype(hidden.dtype)
            d_hidden += matmul(d_logits, part, dtype)
            # Transposed, [D, v], for XLA on CPU is slow where both operands are: so the small one
            # is, before the matmul (the barrier keeps it from becoming a part of it again).
            hidden = lax.optimization_barrier(hidden.T)
            d_part += matmul(hidden, d_logits, dtype)
            return d_part, d_hidden

        d_part = jnp.zeros((head.shape[1], columns.shape[0]), dtype)
        d_part, d_hidden = lax.scan(token_chunk, d_part, (chunks, d_hidden))
        # Words that an earlier chunk had got no gradient here, and have theirs already.
        d_part = d_part.T + lax.dynamic_slice_in_dim(d_head, first, columns.shape[0])
        return d_hidden, lax.dynamic_update_slice_in_dim(d_head, d_part, first, 0)

    turns = -(-head.shape[0] // VOCABULARY)
    d_hidden, d_head = lax.fori_loop(
        0, turns, vocabulary_chunk, (jnp.zeros_like(chunks[0], dtype), jnp.zeros_like(head, dtype))
    )
    d_hidden = d_hidden.reshape(-1, hidden.shape[1])[: hidden.shape[0]]
    return d_hidden.astype(hidden.dtype), d_head.astype(head.dtype), None


_statistics.defvjp(_forward, _backward)


def _accumulator(hidden: jax.Array, head: jax.Array) -> jnp.dtype:
    return jnp.promote_types(jnp.promote_types(hidden.dtype, head.dtype), jnp.float32)


def _split(array: jax.Array, chunk: int) -> jax.Array:
    """[T, ...] -> [chunks, tokens, ...], as even as possible, padded with zeros."""
    chunks = max(1, -(-array.shape[0] // chunk))
    tokens = -(-array.shape[0] // chunks)
    padding = [(0, chunks * tokens - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, padding).reshape(chunks, tokens, *array.shape[1:])


def _columns(i: jax.Array, vocabulary: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Vocabulary chunk i: its first word, its words, and which of them no earlier chunk had.

    The last chunk is moved back to end with the vocabulary, so that no chunk has to be padded.
    """
    size = min(VOCABULARY, vocabulary)
    first = jnp.minimum(i * size, vocabulary - size)
    columns = first + jnp.arange(size)
    return first, columns, columns >= i * size
