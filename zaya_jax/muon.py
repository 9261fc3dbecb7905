"""Muon: momentum, orthogonalised (report Table III; arXiv 2502.16982 for the size of an update).

For a gradient G [m, n] with momentum M, both float32,

    M <- mu M + (1 - mu) G                              the momentum
    N  = mu M + (1 - mu) G   (Nesterov),  or  N = M     what is orthogonalised
    X  = N / max(|N|_F, 1e-7)
    X <- (a I + b A + c A A) X,   A = X X^T             `iterations` times (`newton_schulz`)
    update = rms sqrt(max(m, n)) X                      as large as AdamW's, element by element

These are the momentum and the Nesterov form of `torch.optim.Muon` (an average that starts at zero;
its length does not matter, since X has unit norm). `optax.contrib.muon` divides M and G by their
bias corrections, so its Nesterov step weighs them otherwise in the first steps. An exactly zero
gradient gives an exactly zero update.

The transformation knows matrices, not layers: all axes before the last two are a batch. Nothing
here depends on which of the two sides is the input, so [in, out] and [out, in] give equal updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from pallas_kernels.newton_schulz import newton_schulz
from zaya_jax.config import Muon

PIECE = 2**23
"""Elements that are orthogonalised at a time: 32 MiB, one gate/up matrix of the 8B."""


class MuonState(NamedTuple):
    """momentum: like the parameters."""

    momentum: optax.Updates


def update_of(x: jax.Array, muon: Muon, halves: bool) -> jax.Array:
    """The update of matrices [..., m, n] (or of each half [..., m, n / 2]), to be subtracted."""
    if halves:
        gate, up = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([update_of(half, muon, False) for half in (gate, up)], axis=-1)
    scale = muon.rms * math.sqrt(max(x.shape[-2:]))
    orthogonal = newton_schulz(
        x,
        muon.iterations,
        products=jnp.bfloat16 if muon.bfloat16_products else None,
        implementation=muon.implementation,
    )
    return (scale * orthogonal).astype(x.dtype)


def in_pieces(function: Callable[..., jax.Array], x: jax.Array, *more: jax.Array) -> jax.Array:
    """`function(x, *more)` of arrays [..., m, n] of one shape, `PIECE` elements at a time.

    Each result takes the place of its piece of `x`, so that under jit neither the result nor what
    `function` needs on its way has the size of all experts of all layers. What is small is done in
    one go.
    """
    *batch, m, n = x.shape
    count = math.prod(batch)
    size = max((k for k in range(1, count + 1) if count % k == 0 and k * m * n <= PIECE), default=1)
    if size == count:
        return function(x, *more)
    flat = [array.reshape(count, m, n) for array in (x, *more)]

    def body(i: jax.Array, x: jax.Array) -> jax.Array:
        pieces = [jax.lax.dynamic_slice_in_dim(y, i * size, size) for y in (x, *flat[1:])]
        return jax.lax.dynamic_update_slice_in_dim(x, function(*pieces), i * size, axis=0)

    return jax.lax.fori_loop(0, count // size, body, flat[0]).reshape(x.shape)


def alone(path: str, function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """All matrices of the leaf at `path`, on the device that it lies on."""
    return in_pieces(function, *arrays)


def scale_by_muon(
    muon: Muon, halves: bool = False, run: Callable[..., jax.Array] = alone
) -> optax.GradientTransformation:
    """Gradients [..., m, n] to updates of RMS near `muon.rms`, for a flat dict of such leaves.

    Args:
      muon: with `momentum` 0 there is no momentum, and the state is empty.
      halves: orthogonalise the two halves of the last axis apart (gate and up).
      run: `(path, function, x, *more) -> function(x, *more)` for arrays [..., m, n] of a leaf; each
        matrix may be given to `function` apart, and on another device.
    """

    def init(params: optax.Params) -> optax.OptState:
        if muon.momentum == 0:
            return optax.EmptyState()
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def blend(momentum: jax.Array, gradient: jax.Array) -> jax.Array:
        return muon.momentum * momentum + (1 - muon.momentum) * gradient

    def step(gradient: jax.Array, *momentum: jax.Array) -> jax.Array:
        x = momentum[0] if momentum else gradient
        # Blended here, piece by piece: a whole blend would be one more copy of all weights.
        x = blend(x, gradient) if momentum and muon.nesterov else x
        return update_of(x, muon, halves)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:

        def whole(keys, *arrays: jax.Array) -> jax.Array:
            path = keys[-1] if keys else None
            return run(getattr(path, "key", ""), step, *arrays)

        if not isinstance(state, MuonState):
            return jax.tree_util.tree_map_with_path(whole, updates), state
        momentum = jax.tree.map(blend, state.momentum, updates)
        return jax.tree_util.tree_map_with_path(whole, updates, momentum), MuonState(momentum)

    return optax.GradientTransformation(init, update)
