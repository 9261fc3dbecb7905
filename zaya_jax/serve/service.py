"""What all routes share: the model, the worker, the limits, and how a request becomes a job."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from zaya_jax.data.tokenizer import Tokenizer
from zaya_jax.errors import UserError
from zaya_jax.infer.engine import Engine, Event, Repetition, Request
from zaya_jax.infer.request import encode, room_behind
from zaya_jax.infer.sampler import Sampling
from zaya_jax.serve import schema
from zaya_jax.serve.compiler import Compiler
from zaya_jax.serve.errors import ApiError, of_user_error
from zaya_jax.serve.form import Form
from zaya_jax.serve.gate import Gate
from zaya_jax.serve.logprobs import Names
from zaya_jax.serve.metrics import Metrics
from zaya_jax.serve.settings import Settings
from zaya_jax.serve.work import Job, Worker

FINISH = {"eos": "stop", "stop": "stop", "length": "length", "repetition": "repetition"}
"""Why the engine ended, in the words of the API; `repetition` it does not know."""


@dataclasses.dataclass
class Record:
    """What the log says of a request, beside what HTTP says. owner: name of the key that asked."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    owner: str | None = None
    finish: list[str] = dataclasses.field(default_factory=list)
    first_token_seconds: float | None = None
    asked: Any = None


class Service:
    """One model, served.

    Attributes:
      created: when it was started, in Unix seconds.
      stopping: whether it has been told to stop.
      impatient: whether it is to stop without waiting for anybody.
    """

    def __init__(self, engine: Engine, form: Form, settings: Settings):
        self.engine, self.form, self.settings = engine, form, settings
        self.metrics = Metrics(engine)
        self.worker = Worker(engine, self.metrics.step.observe)
        rows = engine.options.rows
        self.compiler = Compiler(engine)
        room = rows + settings.queue
        self.gate = Gate(room, rows, self.metrics.reject, each=settings.per_key)
        self.solving = Gate(settings.rsa, max(settings.rsa, 1), self.metrics.reject, "rsa runs")
        self.solvers = ThreadPoolExecutor(max(settings.rsa, 1), "rsa")
        self.names = Names(self.tokenizer)
        self.created, self.impatient = int(time.time()), False
        source = engine.loaded.source
        self.fingerprint = f"zaya-step{source.step}" if source.step is not None else "zaya"

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self.engine.loaded.tokenizer

    @property
    def stopping(self) -> bool:
        return self.gate.closed

    async def drain(self) -> None:
        """Lets nobody in any more, and waits until who is in has left, as long as is allowed.

        Requests that are under way then end with an error, which their clients see.
        """
        self.gate.closed = self.solving.closed = True
        deadline = time.monotonic() + self.settings.drain_seconds
        while self.gate.inside and not self.impatient and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        self.end()
        deadline = time.monotonic() + 5
        while self.gate.inside and time.monotonic() < deadline:
            await asyncio.sleep(0.05)

    def end(self) -> None:
        """Ends all requests with an error."""
        self.worker.end(ApiError(503, "the server is stopping", code="stopping", retry_after=30))

    async def stop(self) -> None:
        """Ends the threads."""
        await self.worker.stop()
        self.solvers.shutdown(wait=False, cancel_futures=True)
        self.compiler.close()

    async def encode(self, prompt: str | Sequence[int]) -> list[int]:
        """Ids of a prompt, made outside the event loop where they may take long.

        Raises:
          ApiError: they cannot be made.
        """
        try:
            if isinstance(prompt, str) and len(prompt) > 1000:
                return await asyncio.to_thread(encode, self.engine.loaded, prompt)
            return encode(self.engine.loaded, prompt)
        except ValueError as error:
            raise of_user_error(error, "prompt") from error

    def check_model(self, asked: str | None) -> None:
        """Raises ApiError for a model that is not here."""
        name = self.settings.name
        if asked is not None and asked != name:
            raise ApiError(
                404, f"no model {asked!r}; there is {name!r}", param="model", code="model_not_found"
            )

    def budget(self, asked: int | None, default: int | None = None) -> int:
        """Tokens that a completion may have: what was asked for, within the server's limit."""
        most = self.settings.max_tokens or self.engine.capacity
        return min(most, asked if asked is not None else (default or most))

    def check_top(self, asked: int, param: str) -> None:
        """Raises ApiError for more likeliest tokens than the engine reports."""
        most = self.engine.options.top_logprobs
        if asked > most:
            raise ApiError(400, f"{param} = {asked}: expected 0 to {most}", param=param)

    def samplings(self, body: schema.Sampled) -> list[Sampling]:
        """How each choice is drawn."""
        seed = secrets.randbits(62) if body.seed is None else body.seed
        top_k = None if body.top_k in (-1, 0) else body.top_k
        common = Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_k=top_k,
            top_p=1.0 if body.top_p is None else body.top_p,
            min_p=body.min_p or 0.0,
        )
        return [dataclasses.replace(common, seed=(seed + i) % 2**63) for i in range(body.n or 1)]

    def enter(self, count: int, record: Record, prompts: Sequence[str | list[int]] = ()) -> Run:
        """Takes room for so many sequences. It comes before all that takes time: encoding, and
        compiling grammars.

        Args: prompts: as they were given; one that has no room in any queue is not told to come
          again.

        Raises:
          ApiError: too many sequences, a prompt that is too long at first sight, or no room.
        """
        self.check_count(count)
        for prompt in prompts:
            self._check_length(prompt)
        return Run(self, record, count)

    def check_count(self, count: int) -> None:
        """Raises ApiError for more sequences than a request may have."""
        if count > self.settings.sequences:
            raise ApiError(
                400,
                f"{count} sequences (prompts times n): this server takes "
                f"{self.settings.sequences} in a request",
            )

    def salt(self, record: Record) -> str:
        """What prompts are kept apart by in the cache: whose they are."""
        return "" if self.settings.share_prefixes else record.owner or ""

    @functools.cached_property
    def _longest_token(self) -> int:
        """Bytes that no token exceeds."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            return 1
        names = (len(name.encode()) for name in tokenizer.special_ids)
        return max([1, *map(len, tokenizer.token_bytes), *names])

    def _check_length(self, prompt: str | list[int]) -> None:
        capacity = self.engine.capacity
        if isinstance(prompt, str):
            least = len(prompt) // self._longest_token
            if least >= capacity:
                raise of_user_error(
                    UserError(
                        f"the prompt has at least {least} tokens: capacity = {capacity} must hold "
                        "it and at least one more"
                    )
                )
            return
        try:
            room_behind(self.engine.loaded, prompt, capacity)
        except UserError as error:
            raise of_user_error(error) from error


def repetition(asked: schema.Repetition | None) -> Repetition | None:
    return None if asked is None else Repetition(**asked.model_dump())


def stops(asked: str | list[str] | None) -> tuple[str, ...]:
    return (asked,) if isinstance(asked, str) else tuple(asked or ())


class Run:
    """A request's job, with its room, its measurements and its entry in the log."""

    def __init__(self, service: Service, record: Record, count: int):
        """Args: count: sequences that it is to have.

        Raises:
          ApiError: there is no room.
        """
        self._service, self._record = service, record
        self._job = Job(service.worker)
        self._room, self._count = ExitStack(), count
        self._room.enter_context(service.gate.room(count, owner=record.owner))
        self._admitted = time.perf_counter()

    async def begin(self, requests: Sequence[Request]) -> None:
        """Submits them.

        Raises:
          ApiError: one is refused; then none goes on.
        """
        assert len(requests) == self._count
        await self._job.begin(requests)

    def close(self) -> None:
        """Ends what has not ended, and gives the room back."""
        self._job.close()
        self._room.close()

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """See `Job.events`."""
        record, metrics = self._record, self._service.metrics
        last: dict[int, float] = {}
        async for number, event in self._job.events():
            now = time.perf_counter()
            count = len(event.tokens)
            if number in last:
                if count:
                    metrics.between.observe((now - last[number]) / count)
            elif count:
                metrics.first.observe(now - self._admitted)
                if record.first_token_seconds is None:
                    record.first_token_seconds = round(now - self._admitted, 6)
            last[number] = now
            if event.result is not None:
                record.prompt_tokens += event.result.prompt_tokens
                record.cached_tokens += event.result.cached_tokens
                record.completion_tokens += len(event.result.tokens)
                record.finish.append(event.result.finish)
            yield number, event


class Usage:
    """Tokens of a request's choices; a prompt counts once, however many choices it has."""

    def __init__(self):
        self._prompts: dict[int, tuple[int, int]] = {}
        self._completion = self._reasoning = 0

    def add(self, prompt: int, event: Event, *, written: int, reasoning: int = 0) -> None:
        """Args: prompt: its number. event: the last one. written: tokens that count."""
        assert event.result is not None
        self._prompts.setdefault(prompt, (event.result.prompt_tokens, event.result.cached_tokens))
        self._completion += written
        self._reasoning += reasoning

    def as_json(self) -> dict[str, Any]:
        prompt = sum(tokens for tokens, _ in self._prompts.values())
        cached = sum(tokens for _, tokens in self._prompts.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._completion,
            "total_tokens": prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {"reasoning_tokens": self._reasoning},
        }
