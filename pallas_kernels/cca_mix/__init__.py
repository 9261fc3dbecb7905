"""From projected latents to attention-ready q, k, v (CCA, arXiv 2510.04476; report App. C).

One pass does: two causal convolutions over the joined q and k latents, the q-k mean, L2
normalisation with the learned key temperature, partial RoPE, and the value shift. Document
boundaries reset all of it.

**The joint pad.** Both zero pads (K0-1 of the depthwise stage, K1-1 of the head-wise stage) stand
in front of the depthwise stage, so at the start of a document the head-wise stage reads the
depthwise bias b0, not 0. A tap that reaches before its document reads 0 in stage one and b0 in
stage two.

**Positions decide.** A tap of distance d exists iff the token's position in its document is at
least d. That covers packed rows, left padding and cached continuation without segment ids.

**Parts can be left out** (the ablation of CCA, table 2): a convolution whose weights are None, the
q-k mean, the value shift. What remains is computed as it stands: without convolutions the latents
take the place of the convolved latents, without the q-k mean the L2 norm is of the latter alone,
without the value shift both halves of a value are the token's own.
"""

from __future__ import annotations

from collections.abc import Callable

import jax

from pallas_kernels import dispatch
from pallas_kernels.cca_mix import reference, triton, xla
from pallas_kernels.cca_mix.checks import check_cache, check_mix, check_state
from pallas_kernels.cca_mix.state import decoding, last_state
from pallas_kernels.cca_mix.types import Cache, Place, State, Weights

__all__ = [
    "Cache",
    "DECODE",
    "IMPLEMENTATIONS",
    "Place",
    "SUPPORTS",
    "State",
    "Weights",
    "cca_mix",
    "cca_mix_decode",
    "last_state",
]

IMPLEMENTATIONS: dict[str, Callable] = {
    "triton": triton.cca_mix,
    "xla": xla.cca_mix,
    "reference": reference.cca_mix,
}
SUPPORTS = {"triton": triton.supports}

# The same mix of one token a row, into a cache.
DECODE: dict[str, Callable] = {
    "triton": triton.cca_mix_decode,
    "xla": decoding(xla.cca_mix),
    "reference": decoding(reference.cca_mix),
}


def cca_mix(
    q: jax.Array,
    k: jax.Array,
    v_current: jax.Array,
    v_delayed: jax.Array,
    weights: Weights,
    cos: jax.Array,
    sin: jax.Array,
    positions: jax.Array,
    state: State | None = None,
    *,
    norm_dtype,
    qk_mean: bool = True,
    value_shift: bool = True,
    implementation: str = "auto",
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mixes latents over time and normalises them.

    Args:
      q: [B, S, H * C] latents in the activation dtype.
      k: [B, S, K * C].
      v_current, v_delayed: [B, S, K * C / 2]; a token's value is its own current half followed by
        the previous token's delayed half, then split into heads.
      weights: see `Weights`.
      cos, sin: [B, S, rotated / 2]; functions of the positions: `triton` gives them no gradient.
      positions: [B, S] int32, index of each token in its document.
      state: of the tokens before the first one; None means zeros.
      norm_dtype: in which the q-k mean and the L2 norm are computed.
      qk_mean: whether the mean of q and k joins the convolved latents.
      value_shift: whether the delayed half of a value is the token's before.

    Returns:
      q [B, S, H, C], k [B, S, K, C], v [B, S, K, C] in the activation dtype.

    Raises:
      ValueError: shapes that do not fit each other, an unknown implementation or one that does not
        take this call.
    """
    latents = q, k, v_current, v_delayed
    check_mix("cca_mix", *latents, weights, cos, sin, positions)
    if state is not None:
        check_state("cca_mix", q, k, weights, state, value_shift=value_shift)
    return dispatch.call(
        "cca_mix",
        IMPLEMENTATIONS,
        SUPPORTS,
        implementation,
        *latents,
        weights,
        cos,
        sin,
        positions,
        state,
        norm_dtype=norm_dtype,
        qk_mean=qk_mean,
        value_shift=value_shift,
    )


def cca_mix_decode(
    q: jax.Array,
    k: jax.Array,
    v_current: jax.Array,
    v_delayed: jax.Array,
    weights: Weights,
    cos: jax.Array,
    sin: jax.Array,
    positions: jax.Array,
    cache: Cache,
    place: Place,
    *,
    norm_dtype,
    qk_mean: bool = True,
    value_shift: bool = True,
    implementation: str = "auto",
) -> tuple[jax.Array, Cache]:
    """The mix of one token a row (S = 1), which continues from the cache and goes into it.

    `triton` is a single launch that overwrites the cache in place. Only the forward pass is there.

    Args:
      cache, place: what is remembered, and where the tokens go.
      others: as of `cca_mix`.

    Returns:
      q [B, 1, H, C], and the cache with the tokens.

    Raises:
      ValueError: more than one token a row; as `cca_mix`.
    """
    latents = q, k, v_current, v_delayed
    check_mix("cca_mix_decode", *latents, weights, cos, sin, positions)
    if q.shape[1] != 1:
        raise ValueError(f"cca_mix_decode: one token a row, not {q.shape[1]}")
    check_cache("cca_mix_decode", q, k, weights, cache, place, value_shift=value_shift)
    return dispatch.call(
        "cca_mix",
        DECODE,
        {"triton": triton.supports_decode},
        implementation,
        *latents,
        weights,
        cos,
        sin,
        positions,
        cache,
        place,
        norm_dtype=norm_dtype,
        qk_mean=qk_mean,
        value_shift=value_shift,
    )
