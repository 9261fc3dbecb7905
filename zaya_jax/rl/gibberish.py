"""Canaries that are watched, and decide nothing: rare tokens, and tokens nobody would expect.

A policy that breaks down begins to write tokens from the far end of the vocabulary, which a BPE
made last, and which it gives hardly more probability than chance does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

TOP = (0.10, 0.05, 0.02, 0.01)
"""Shares of the vocabulary, from its end, that are called rare; the first is the canary."""


def rare_fractions(ids: Sequence[int], vocab_size: int) -> Mapping[float, float]:
    """For each share of `TOP`, how many of the tokens are among that share of the largest ids."""
    tokens = np.asarray(ids, np.int64)
    if not tokens.size:
        return dict.fromkeys(TOP, 0.0)
    return {share: float(np.mean(tokens >= vocab_size * (1 - share))) for share in TOP}


def logprob_threshold(vocab_size: int) -> float:
    """`-ln V - 2`: e^2 times less likely than a token drawn blindly. -14.477 for ZAYA1."""
    return -math.log(vocab_size) - 2


def gibberish(
    ids: Sequence[int],
    logprobs: Sequence[float],
    vocab_size: int,
    *,
    first_rare: int | None = None,
) -> np.ndarray:
    """Which tokens are rare and were hardly to be expected (CWM, report appendix E).

    Args:
      ids: [n].
      logprobs: [n], of the policy that sampled them, in nats.
      vocab_size: V.
      first_rare: ids above it are rare; None for 100,000 of 262,272, in proportion.

    Returns:
      [n] bool. A rollout with any is flagged, for people to look at: too many good ones have some
      for it to gate a reward. Sampling with min-p 1e-5 makes them go away.
    """
    if first_rare is None:
        first_rare = int(vocab_size * 100_000 / 262_272)
    rare = np.asarray(ids, np.int64) > first_rare
    return rare & (np.asarray(logprobs, np.float64) < logprob_threshold(vocab_size))
