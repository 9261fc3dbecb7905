"""Are our logits those of transformers? Both sides compute the same prompts in float32.

A difference means little beside nothing: transformers differs from itself when it computes
attention another way (eager against sdpa) and from the exact result by rounding (float32 against
float64). Both are measured on the same prompts and stand beside our difference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax.config import Model
from zaya_jax.errors import UserError
from zaya_jax.hf.oracle import Oracle
from zaya_jax.model import cache as caches
from zaya_jax.model.functional import Biases, Params, merge

TOLERANCE = 1e-5  # |difference| over the largest |logit|
NOISE_FACTOR = 4.0  # a deep network is as noisy as its oracle: so much more is still the same
NOISE_LIMIT = 100.0  # times the tolerance, at most


@dataclasses.dataclass(frozen=True)
class Result:
    """One prompt. Differences are relative to the largest |logit| of transformers.

    gap: ours against transformers (float32, eager).
    sdpa: transformers' sdpa against its eager attention.
    rounding: transformers' float32 against its float64; None if not measured.
    allowed: for `gap`.
    tokens: greedy tokens compared; agreed: how many of them, from the first, are the same.
    tie: whether the first that differs was a tie within `allowed`.
    """

    prompt: str
    length: int
    gap: float
    sdpa: float
    rounding: float | None
    allowed: float
    tokens: int
    agreed: int
    tie: bool

    @property
    def ok(self) -> bool:
        """Whether the prompt shows the same model on both sides."""
        return self.gap <= self.allowed and (self.agreed == self.tokens or self.tie)


class Ours:
    """Our network in float32: a prefill of right-padded prompts, and cached greedy decoding."""

    def __init__(self, model: Model, params: Params, biases: Biases, capacity: int):
        self.model = dataclasses.replace(
            model, param_dtype="float32", activation_dtype="float32", layers="unroll"
        )
        self._values = ({p: jnp.asarray(v, jnp.float32) for p, v in params.items()}, biases)
        self._capacity = capacity

        @jax.jit
        def run(values, tokens, live, cache):
            network = merge(self.model, *values)
            out = network(tokens, segment_ids=live, cache=cache)
            return network.logits(out.hidden)[0], out.cache

        self._run = run

    def prefill(self, ids: Sequence[int], padded: int) -> tuple[np.ndarray, caches.Cache]:
        """[S] ids -> their logits [S, V], and the cache behind them."""
        tokens = np.zeros((1, padded), np.int32)
        tokens[0, : len(ids)] = ids
        live = (np.arange(padded) < len(ids)).astype(np.int32)[None]
        empty = caches.empty(self.model, 1, self._capacity)
        logits, cache = self._run(self._values, tokens, live, empty)
        return np.asarray(logits, np.float64)[: len(ids)], cache

    def greedy(self, logits: np.ndarray, cache: caches.Cache, n: int) -> list[int]:
        """The `n` most likely next tokens, one by one."""
        found = [int(logits[-1].argmax())]
        live = np.ones((1, 1), np.int32)
        while len(found) < n:
            tokens = np.array([[found[-1]]], np.int32)
            step, cache = self._run(self._values, tokens, live, cache)
            found.append(int(np.asarray(step)[-1].argmax()))
        return found


def verify(
    model: Model,
    params: Params,
    biases: Biases,
    oracle: Oracle,
    prompts: dict[str, list[int]],
    *,
    new_tokens: int = 32,
    tolerance: float = TOLERANCE,
    noise: bool = True,
) -> list[Result]:
    """Compares logits of the prompts and the greedy tokens that follow them.

    Args:
      model, params, biases: our side.
      oracle: the other; its model is in float64 afterwards if `noise` is.
      prompts: ids by a label.
      new_tokens: how many to decode.
      tolerance: allowed difference, relative to the largest |logit|. Where transformers' own noise
        is larger than a quarter of it, four times the noise is allowed, up to 100 times this.
      noise: measure float64 too, which doubles the memory of the other side.

    Raises:
      UserError: the two have different vocabularies, or a prompt does not fit.
    """
    check_prompts(model, prompts, new_tokens)
    padded = max(map(len, prompts.values()))
    ours = Ours(model, params, biases, padded + new_tokens)
    measured = {}
    for label, ids in prompts.items():
        theirs = oracle.logits(ids)
        mine, cache = ours.prefill(ids, padded)
        if mine.shape != theirs.shape:
            raise UserError(
                f"the two sides are different models: vocabulary of {mine.shape[-1]} here, of "
                f"{theirs.shape[-1]} there"
            )
        sdpa = oracle.logits(ids, "sdpa")
        their_tokens, their_steps = oracle.greedy(ids, new_tokens)
        my_tokens = ours.greedy(mine, cache, new_tokens)
        measured[label] = (theirs, mine, sdpa, their_tokens, their_steps, my_tokens)
    if noise:
        oracle.widen()
    results = []
    for label, (theirs, mine, sdpa, their_tokens, their_steps, my_tokens) in measured.items():
        rounding = _gap(oracle.logits(prompts[label]), theirs) if noise else None
        own = max(_gap(sdpa, theirs), rounding or 0.0)
        allowed = max(tolerance, min(NOISE_FACTOR * own, NOISE_LIMIT * tolerance))
        agreed = _agreed(my_tokens, their_tokens)
        results.append(
            Result(
                label,
                len(prompts[label]),
                _gap(mine, theirs),
                _gap(sdpa, theirs),
                rounding,
                allowed,
                new_tokens,
                agreed,
                agreed < new_tokens and _margin(their_steps[agreed]) <= allowed,
            )
        )
    return results


def check_prompts(model: Model, prompts: dict[str, list[int]], new_tokens: int) -> None:
    """Raises UserError if there is no prompt, or one is empty, too long, or has ids outside the
    vocabulary."""
    if not prompts:
        raise UserError(
            f"no prompt is short enough for {new_tokens} new tokens: the context holds "
            f"{model.context_length}; compare fewer by --tokens"
        )
    for label, ids in prompts.items():
        outside = [i for i in ids if not 0 <= i < model.vocab_size]
        if outside:
            raise UserError(f"{label}: ids {outside[:5]} are not below {model.vocab_size}")
        if not ids or len(ids) + new_tokens > model.context_length:
            raise UserError(
                f"{label}: {len(ids)} tokens and {new_tokens} new ones; the prompt may not be "
                f"empty, and the context holds {model.context_length}"
            )


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    """Largest |a - b| over the largest |b|; infinite if either is not finite."""
    gap = float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
    return gap if np.isfinite(gap) else float("inf")


def _agreed(a: list[int], b: list[int]) -> int:
    """How many entries are equal before the first that differs."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def _margin(logits: np.ndarray) -> float:
    """Distance of the two best logits [V] over the largest |logit|."""
    second, first = np.partition(logits, -2)[-2:]
    return float((first - second) / np.max(np.abs(logits)))


def table(results: Sequence[Result]) -> str:
    """The results for a terminal."""
    width = max([len("prompt"), *(len(r.prompt) for r in results)])
    head = f"{'prompt':<{width}}  tokens      ours    sdpa   float64   allowed  greedy"
    lines = [head]
    for r in results:
        rounding = "      -" if r.rounding is None else f"{r.rounding:7.1e}"
        greedy = f"{r.agreed}/{r.tokens}" + (" (tie)" if r.tie else "")
        lines.append(
            f"{r.prompt:<{width}}  {r.length:6d}   {r.gap:7.1e} {r.sdpa:7.1e}   {rounding}   "
            f"{r.allowed:7.1e}  {greedy}{'' if r.ok else '  DIFFERS'}"
        )
    return "\n".join(lines)
