"""What goes into the op and comes out of it."""

from __future__ import annotations

from typing import NamedTuple

import jax


class Weights(NamedTuple):
    """Parameters of the mix; N = (H + K) * C channels, q heads first.

    A convolution that is left out has None for its weight and its bias.

    depthwise: [K0, N], taps oldest first.
    depthwise_bias: [N].
    grouped: [K1, H + K, C, C] as [tap, head, in, out], taps oldest first.
    grouped_bias: [N].
    temperature: [K], multiplies the normalised keys.
    """

    depthwise: jax.Array | None
    depthwise_bias: jax.Array | None
    grouped: jax.Array | None
    grouped_bias: jax.Array | None
    temperature: jax.Array

    @property
    def past(self) -> int:
        """Tokens back that a token's latents depend on: K0 - 1, K1 - 1, or both."""
        return sum(w.shape[0] - 1 for w in (self.depthwise, self.grouped) if w is not None)


class State(NamedTuple):
    """What a continuation needs of the tokens before it.

    qk: [B, past, N] last latents before the convolutions, zeros before the document; past is
      K0 + K1 - 2, less where a convolution is left out (see `Weights`).
    v_delayed: [B, K * C / 2] delayed half of the last token's value, zeros before the document;
      None without a value shift.
    """

    qk: jax.Array
    v_delayed: jax.Array | None


class Cache(NamedTuple):
    """What a layer remembers of its rows, or pages of it (see `Place`).

    keys, values: [B, K, T, C] of the tokens so far.
    state: after the last of them.
    """

    keys: jax.Array
    values: jax.Array
    state: State


class Place(NamedTuple):
    """Where in a cache the new token of each row goes.

    slot: [B] int32, at which of the T.
    live: [B] bool; of a row that is not, the state stays (what is written elsewhere is never read).
    pages: (before, after), [B] int32 each, where the cache is a pool, [P, ...] instead of [B, ...]:
      the page with the row's state, and the one that token and new state are written to. No page is
      written for one row and read or written for another, except one whose content nobody uses.
    """

    slot: jax.Array
    live: jax.Array
    pages: tuple[jax.Array, jax.Array] | None = None
