"""What goes into the op and comes out of it."""

from __future__ import annotations

from typing import NamedTuple

import jax


class Weights(NamedTuple):
    """Parameters of a router; None where its kind has no such part.

    down: [D, R] and down_bias [R].
    state_scale: [R], weight of the layer before (exponential depth averaging).
    norm: [R].
    fc1, fc2: [R, R] and their biases [R], the hidden layers of the MLP.
    out: [R, classes], or [D, classes] where there is no down-projection.
    deeper: weights and biases of the hidden layers behind those two.
    """

    down: jax.Array | None
    down_bias: jax.Array | None
    state_scale: jax.Array | None
    norm: jax.Array | None
    fc1: jax.Array | None
    fc1_bias: jax.Array | None
    fc2: jax.Array | None
    fc2_bias: jax.Array | None
    out: jax.Array
    deeper: tuple[tuple[jax.Array, jax.Array], ...] | None = None


class Routing(NamedTuple):
    """Decisions of a router for T tokens.

    index: [T, k] int32 chosen classes; `classes` (out of range) for tokens that are not `live`.
    weight: [T, k] unbiased probabilities of the choices, activation dtype.
    state: [T, R] averaged state for the next layer, before its norm; None without one.
    probabilities: [T, classes] in the softmax dtype.
    counts: [classes] int32, live tokens (times k) that chose each class.
    log_normalizer: [T] log-sum-exp of the logits, for the z-loss.
    """

    index: jax.Array
    weight: jax.Array
    state: jax.Array | None
    probabilities: jax.Array
    counts: jax.Array
    log_normalizer: jax.Array
