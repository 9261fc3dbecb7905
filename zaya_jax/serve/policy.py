"""A policy of Markovian RSA that is the engine: the rollouts of a stage run side by side."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from zaya_jax.infer.engine import Event, Request
from zaya_jax.infer.request import Completion
from zaya_jax.infer.rsa import Ask, Sample
from zaya_jax.infer.rsa.generator import Chat
from zaya_jax.infer.sampler import Sampling
from zaya_jax.serve.errors import ApiError
from zaya_jax.serve.work import Worker


class Cancelled(Exception):
    """Nobody waits for the run any more."""


class EnginePolicy:
    """Answers asks; called in a thread that is not the event loop's."""

    def __init__(self, worker: Worker, chat: Chat, cache_salt: str = ""):
        """Args: cache_salt: of all requests; see `zaya_jax.infer.engine.Request`."""
        self._worker, self._chat, self._salt = worker, chat, cache_salt
        self._inbox: queue.SimpleQueue[tuple[int, Event | ApiError] | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Ends it, from any thread: the call under way raises Cancelled."""
        self._cancelled.set()
        self._inbox.put(None)

    def __call__(
        self,
        asks: Sequence[Ask],
        done: Callable[[int, Sample], None],
        progress: Callable[[int, str], None] | None = None,
    ) -> None:
        prompts = [self._chat.encode(ask.messages) for ask in asks]
        ids: dict[int, int] = {}
        try:
            for number, (ask, prompt) in enumerate(zip(asks, prompts, strict=True)):
                if self._cancelled.is_set():
                    raise Cancelled
                put = lambda news, number=number: self._inbox.put((number, news))  # noqa: E731
                ids[number] = self._worker.submit_from_thread(self._request(ask, prompt), put)
            while ids:
                item = self._inbox.get()
                if item is None or self._cancelled.is_set():
                    raise Cancelled
                number, news = item
                if isinstance(news, ApiError):
                    raise news
                if news.text and progress is not None:
                    progress(number, news.text)
                if news.result is not None:
                    del ids[number]
                    done(number, self._sample(news, prompts[number]))
        finally:
            self._worker.cancel_from_thread(list(ids.values()))

    def _sample(self, event: Event, prompt: Sequence[int]) -> Sample:
        result = event.result
        assert result is not None
        if result.finish == "failed":
            raise ApiError(500, f"a rollout failed: {result.error}")
        finish = result.finish
        assert finish in ("eos", "stop", "length")
        written = Completion(
            result.text, result.tokens, result.logprobs, finish, result.prompt_tokens
        )
        return Sample(
            text=self._chat.decode(written),
            tokens=len(result.tokens),
            prompt_tokens=result.prompt_tokens,
            finish=finish,
            thinking=self._chat.opens_thinking(prompt),
        )

    def _request(self, ask: Ask, prompt: Sequence[int]) -> Request:
        given = ask.sampling
        sampling = Sampling(given.temperature, given.top_k, given.top_p, given.min_p, seed=ask.seed)
        return Request(prompt, ask.max_tokens, sampling, cache_salt=self._salt)
