"""What the engine is asked for, and what it tells on the way and at the end."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import numpy as np

from zaya_jax.infer import request as plain
from zaya_jax.infer.engine.grammar import Compiled, Constraint
from zaya_jax.infer.engine.repetition import Repetition


@dataclasses.dataclass(frozen=True)
class Request(plain.Request):
    """A prompt to continue; a `zaya_jax.infer.Request` is taken as well.

    top_logprobs: the likeliest tokens to report beside each chosen one, and, with `score_prompt`,
      beside each of the prompt.
    score_prompt: whether to report the log-probability of each token of the prompt.
    constraint: what the text must be; compiled by `Engine.grammars` already, or then.
    repetition: when to end a completion that repeats itself; None never.
    routes: whether to report the routers' choices for each token.
    ignore_eos: whether to go on behind a stop token; not with a constraint, whose end that is.
    cache_salt: prompts share pages only with those of the same salt: how fast a prompt was read
      tells nobody else what others asked.
    """

    top_logprobs: int = 0
    score_prompt: bool = False
    constraint: Constraint | Compiled | None = None
    repetition: Repetition | None = None
    routes: bool = False
    ignore_eos: bool = False
    cache_salt: str = ""

    @classmethod
    def of(cls, request: plain.Request) -> Request:
        """The request itself, or the same in this class."""
        if isinstance(request, cls):
            return request
        return cls(request.prompt, request.max_tokens, request.sampling, request.stop)


Finish = Literal["eos", "stop", "length", "repetition", "cancelled", "failed"]
Best = tuple[tuple[int, float], ...]
"""Ids and log-probabilities of the likeliest tokens, most likely first."""


class Token(NamedTuple):
    """One chosen token.

    logprob: in nats, under the model at temperature 1.
    version: of the weights that chose it; see `Engine.swap`.
    best: as many as were asked for.
    """

    id: int
    logprob: float
    version: int
    best: Best = ()


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of a request.

    text, tokens, logprobs, prompt_tokens, notes: see `zaya_jax.infer.Completion`.
    versions: of the weights that chose each token.
    finish: `eos`, `stop` (a stop string), `length` (max_tokens or the context), `repetition`,
      `cancelled`, or `failed`, and then `error` says why.
    cached_tokens: of the prompt that were found in pages of earlier requests.
    best: of each token, where asked for.
    prompt_logprobs, prompt_best: of each token of the prompt but the first, where asked for.
    routes: [n, L, k] uint8, what the router of each layer chose for the first n tokens of prompt
      and completion: all but the last, which no layer has seen. The skip class comes after the
      experts. None unless asked for.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    versions: list[int]
    finish: Finish
    prompt_tokens: int
    cached_tokens: int = 0
    best: list[Best] = dataclasses.field(default_factory=list)
    prompt_logprobs: list[float] | None = None
    prompt_best: list[Best] | None = None
    routes: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None


class Event(NamedTuple):
    """News of a request: tokens that were chosen, the text that became certain, and at the end its
    result. Every request has exactly one event with a result, its last."""

    id: int
    tokens: tuple[Token, ...]
    text: str
    result: Result | None
