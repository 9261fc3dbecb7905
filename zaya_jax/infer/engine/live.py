"""A request while the engine works on it: what the scheduler moves, and what its tokens become."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from zaya_jax.errors import UserError
from zaya_jax.infer.engine.grammar import Matcher
from zaya_jax.infer.engine.repetition import Watch
from zaya_jax.infer.engine.request import Best, Event, Finish, Request, Result, Token
from zaya_jax.infer.engine.scheduler import Sequence
from zaya_jax.infer.request import Answer
from zaya_jax.load import Loaded

log = logging.getLogger(__name__)


class Live:
    """A request on its way; checked on creation.

    Attributes:
      sequence: for the scheduler.
      damaged: whether its pages hold numbers that are not finite.
    """

    def __init__(
        self,
        id: int,
        loaded: Loaded,
        request: Request,
        capacity: int,
        top: int,
        compile: Callable[..., Matcher],
    ):
        """Args:
          capacity: tokens that it may reach.
          top: likeliest tokens that it may ask for.
          compile: makes a matcher of a constraint.

        Raises:
          UserError: a request that cannot be met.
        """
        self.request, self.answer = request, Answer(loaded, request, capacity)
        if request.ignore_eos and request.constraint is None:
            self.answer.stop_ids = frozenset()
        if not 0 <= request.top_logprobs <= top:
            raise UserError(f"top_logprobs = {request.top_logprobs}: expected 0 to {top}")
        if request.constraint is not None:
            loaded.require_tokenizer()
        self.matcher = None if request.constraint is None else compile(request.constraint)
        self._watch = None if request.repetition is None else Watch(request.repetition)
        self.damaged = False
        self._finish: Finish | None = None
        self._error: str | None = None
        self._news: list[Token] = []
        self._text = ""
        self._versions: list[int] = []
        self._best: list[Best] = []
        self._scores: list[float] = []
        self._prompt_best: list[Best] = []
        prompt = self.answer.prompt
        self.sequence = Sequence(
            id=id,
            tokens=list(prompt),
            prompt=len(prompt),
            most=len(prompt) + self.answer.remaining,
            stepwise=self.matcher is not None,
            reads=not request.score_prompt,
            salt=request.cache_salt.encode(),
        )

    @property
    def bound(self) -> bool:
        """Whether it may choose from a part of the vocabulary only."""
        return self.matcher is not None and not self.ended

    def allow(self, words: np.ndarray) -> None:
        """Writes the bits of the tokens that it may choose; see `Matcher.allow`. If that fails the
        request does, and may choose any: nobody reads what it gets."""
        assert self.matcher is not None
        try:
            self.matcher.allow(words)
        except Exception as error:  # not to end what else is in the batch
            words[:] = 0xFFFFFFFF
            self.fail(_told(error))

    @property
    def ended(self) -> bool:
        """Whether it wants no more tokens."""
        return self._finish is not None

    @property
    def has_news(self) -> bool:
        """Whether there is anything to tell since the last event."""
        return bool(self._news or self._text)

    def push(self, token: Token) -> None:
        """Takes the next token. Whatever goes wrong with it ends this request, not the others."""
        try:
            self._push(token)
        except UserError as error:  # no finite logit
            self.damaged = True
            self.fail(str(error))
        except Exception as error:
            log.exception("request %d", self.sequence.id)
            self.fail(_told(error))

    def _push(self, token: Token) -> None:
        self._text += self.answer.push(token.id, token.logprob)
        self._news.append(token)
        self._versions.append(token.version)
        self._best.append(token.best)
        if not self.answer.remaining:
            self._finish = self.answer.finish
        elif self.matcher is not None and not self.matcher.push(token.id):
            self.fail(f"token {token.id} breaks the constraint: {self.matcher.error}")
        elif self._watch is not None and self._watch.push(token.id, token.logprob):
            self._end("repetition")

    def score(self, logprob: float, best: Best) -> None:
        """Takes the score of the next token of the prompt."""
        self._scores.append(logprob)
        self._prompt_best.append(best)

    def cancel(self) -> None:
        """Ends it."""
        self._end("cancelled")

    def fail(self, error: str) -> None:
        """Ends it, and says why."""
        self._error = error
        self._end("failed")

    def _end(self, finish: Finish) -> None:
        if not self.ended:
            self._finish = finish
            try:
                self._text += self.answer.close()
            except Exception:  # what was held back is lost; that it ended is not
                log.exception("request %d", self.sequence.id)

    def event(self, routes=None) -> Event:
        """The news since the last time, with the result if it has ended."""
        news, text = tuple(self._news), self._text
        self._news, self._text = [], ""
        return Event(self.sequence.id, news, text, self._result(routes) if self.ended else None)

    def _result(self, routes) -> Result:
        assert self._finish is not None
        scored, best = self.request.score_prompt, self.request.top_logprobs > 0
        return Result(
            text=self.answer.text,
            tokens=self.answer.tokens,
            logprobs=self.answer.logprobs,
            versions=self._versions,
            finish=self._finish,
            prompt_tokens=len(self.answer.prompt),
            cached_tokens=self.sequence.shared,
            best=self._best if best else [],
            prompt_logprobs=self._scores if scored else None,
            prompt_best=self._prompt_best if scored and best else None,
            routes=routes,
            notes=self.answer.notes,
            error=self._error,
        )


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
