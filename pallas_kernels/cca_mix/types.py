"""What goes into the op and comes out of it."""

from __future__ import annotations

from typing import NamedTuple

import jax


class Weights(NamedTuple):
    """Parameters of the mix; N = (H + K) * C channels, q heads first.

    depthwise: [K0, N], taps oldest first.
    depthwise_bias: [N].
    grouped: [K1, H + K, C, C] as [tap, head, in, out], taps oldest first.
    grouped_bias: [N].
    temperature: [K], multiplies the normalised keys.
    """

    depthwise: jax.Array
    depthwise_bias: jax.Array
    grouped: jax.Array
    grouped_bias: jax.Array
    temperature: jax.Array


class State(NamedTuple):
    """What a continuation needs of the tokens before it.

    qk: [B, K0 + K1 - 2, N] last latents before the convolutions, zeros before the document.
    v_delayed: [B, K * C / 2] delayed half of the last token's value, zeros before the document.
    """

    qk: jax.Array
    v_delayed: jax.Array
