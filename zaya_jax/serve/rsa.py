"""Chats that are answered by Markovian RSA, and what a client may watch of it.

The rounds run in a thread of their own; what happens there is told to the event loop, where it is
joined and sent on. In a stream, news stand in chunks without choices, in a field `rsa`, which
clients that do not know it pass over; the answer comes at the end, as any answer does.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import ExitStack
from typing import Any

from zaya_jax.data.messages import THINK, parse
from zaya_jax.errors import UserError, hint
from zaya_jax.infer.rsa import PRESETS, Result, Sample, Settings, algorithm, prompts, selection
from zaya_jax.infer.rsa.generator import capacity
from zaya_jax.infer.rsa.prompts import Planned
from zaya_jax.infer.rsa.selection import Chosen
from zaya_jax.infer.rsa.settings import RECOMMENDED, Sampling
from zaya_jax.serve import schema
from zaya_jax.serve.chats import Envelope, budget_of, thinking_of
from zaya_jax.serve.errors import ApiError, of_user_error, unsupported
from zaya_jax.serve.form import plain
from zaya_jax.serve.policy import Cancelled, EnginePolicy
from zaya_jax.serve.service import Record, Service
from zaya_jax.serve.streams import DONE, sse

PAUSE = 0.1
"""Seconds between two chunks of news: what is written meanwhile is joined."""
_EXCLUDED = (
    "tools", "tool_choice", "response_format", "logprobs", "top_logprobs", "stop",
    "repetition_guard", "ignore_eos", "return_token_ids",
)  # fmt: skip


class Solve:
    """One run on its way."""

    def __init__(self, service: Service, body: schema.ChatRequest, record: Record):
        schema.refuse(body)
        service.check_model(body.model)
        for name in _EXCLUDED:
            if getattr(body, name):
                raise unsupported(name, "cannot be combined with rsa")
        if body.n not in (None, 1):
            raise unsupported("n", "an rsa run has one answer; selection: none gives all")
        if thinking_of(body) is not None:
            raise unsupported("reasoning_effort", "cannot be combined with rsa")
        self._service, self._body, self._record = service, body, record
        if service.form.rsa is None:
            raise ApiError(400, "rsa: this model has no tokenizer", param="rsa")
        if not service.settings.rsa:
            raise unsupported("rsa", "this server was started without (--rsa_runs=0)")
        self.settings = limited(settings_of(body), service.settings.max_tokens)
        service.check_count(self.settings.population)
        self._conversation: list[dict[str, str]] = []
        self._envelope = Envelope(service)
        self._room = ExitStack()
        self._loop = asyncio.get_running_loop()
        self._feed = Feed(self.settings, service, self._loop)
        self._policy: EnginePolicy | None = None
        self._run: asyncio.Future[Result] | None = None

    def _check(self) -> list[dict[str, str]]:
        """The conversation, if a run over it fits."""
        service, form = self._service, self._service.form.rsa
        assert form is not None
        try:
            conversation = conversation_of(self._body.messages)
            prompts.check(conversation)
            room, context = service.engine.capacity, service.engine.loaded.model.context_length
            limit = "the model's context" if room == context else "the server's room"
            capacity(conversation, self.settings, form, room, limit)
        except ValueError as error:
            raise of_user_error(error, "rsa" if "fit" in str(error) else None) from error
        return conversation

    async def begin(self) -> None:
        """Starts the run.

        Raises:
          ApiError: it does not fit the model; no room for its rollouts, or too many runs.
        """
        service, owner = self._service, self._record.owner
        self._room.enter_context(service.solving.room(1, "an rsa run"))
        try:
            count = self.settings.population
            self._room.enter_context(service.gate.room(count, "the rsa run", owner))
            self._conversation = await asyncio.to_thread(self._check)
            service.worker.check()
            assert service.form.rsa is not None
            salt = service.salt(self._record)
            self._policy = EnginePolicy(service.worker, service.form.rsa, salt)
            self._run = self._loop.run_in_executor(service.solvers, self._solve)
        except BaseException:
            self._room.close()
            raise

    def _solve(self) -> Result:
        """The run, in its thread."""
        assert self._policy is not None
        tokenizer = self._service.engine.loaded.require_tokenizer()
        try:
            return algorithm.solve(
                self._policy, self._conversation, self.settings, tokenizer, observer=self._feed
            )
        except UserError as error:
            raise of_user_error(error) from error
        finally:
            self._feed.finish()

    async def close(self) -> None:
        """Ends the run if it has not ended, and gives its room back when it has."""
        try:
            if self._policy is not None and self._run is not None and not self._run.done():
                self._policy.cancel()
                await asyncio.wait({self._run})
                self._service.metrics.solved.labels("cancelled").inc()
            if self._run is not None and not self._run.cancelled():
                self._run.exception()  # seen; whoever wanted it has got it
        finally:
            self._room.close()

    async def whole(self) -> dict[str, Any]:
        """The answer, once the run has ended."""
        try:
            return self._answer(await self._result())
        finally:
            await self.close()

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """News of the run, then the answer, as server-sent events."""
        options = self._body.stream_options
        try:
            start = {"event": "start", "settings": dataclasses.asdict(self.settings)}
            yield sse(self._envelope([], chunk=True) | {"rsa": start})
            async for news in self._feed.news():
                yield sse(self._envelope([], chunk=True) | {"rsa": news})
            result = await self._result()
            answer = self._answer(result)
            for choice in answer["choices"]:
                delta = choice.pop("message")
                finish = choice.pop("finish_reason")
                yield sse(
                    self._envelope([choice | {"delta": delta, "finish_reason": None}], chunk=True)
                )
                end = choice | {"delta": {}, "finish_reason": finish}
                yield sse(self._envelope([end], chunk=True))
            last = {"event": "result"} | answer["rsa"]
            yield sse(self._envelope([], chunk=True) | {"rsa": last})
            if options is not None and options.include_usage:
                yield sse(self._envelope([], chunk=True) | {"usage": answer["usage"]})
            yield DONE
        finally:
            await self.close()

    async def _result(self) -> Result:
        assert self._run is not None
        try:
            result = await asyncio.shield(self._run)
        except Cancelled:
            raise ApiError(503, "the run was ended") from None
        except Exception:
            self._service.metrics.solved.labels("failed").inc()
            raise
        self._service.metrics.solved.labels("solved").inc()
        return result

    def _answer(self, result: Result) -> dict[str, Any]:
        record, costs = self._record, result.costs
        record.prompt_tokens = sum(cost.prefilled for cost in costs)
        record.completion_tokens = result.decoded
        record.finish.append("solved")
        choices = [
            {
                "index": i,
                "message": message_of(sample),
                "logprobs": None,
                "finish_reason": "stop" if sample.finished else "length",
            }
            for i, sample in enumerate(self._given(result))
        ]
        usage = {
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": result.decoded,
            "total_tokens": record.prompt_tokens + result.decoded,
        }
        told = result.as_json()
        told["seed"] = self.settings.seed
        assert self._body.rsa is not None
        if not self._body.rsa.trace:
            del told["stages"]
        return self._envelope(choices, chunk=False) | {"usage": usage, "rsa": told}

    def _given(self, result: Result) -> Sequence[Sample]:
        """The rollouts that become choices: the chosen one; all, where none is selected."""
        population = result.stages[self.settings.rounds]
        if self.settings.selection == "none":
            return population
        rollout = result.chosen.rollout
        if rollout is None:  # nobody gives an answer: the first, as it is
            return population[:1]
        return [population[rollout] if rollout < len(population) else result.stages[-1][0]]


class Feed:
    """An observer in the run's thread; its news are read on the event loop."""

    def __init__(self, settings: Settings, service: Service, loop: asyncio.AbstractEventLoop):
        self._settings, self._tokenizer = settings, service.engine.loaded.require_tokenizer()
        self._loop = loop
        self._news: list[dict[str, Any]] = []
        self._arrived, self._ended = asyncio.Event(), False
        self._samples: dict[int, Sample] = {}
        self._population = 0

    def begin(self, stage: int, planned: Sequence[Planned]) -> None:
        self._samples, self._population = {}, len(planned)
        shown = [list(item.shown) for item in planned]
        self._tell(
            event="stage",
            stage=stage,
            name="selection" if stage > self._settings.rounds else f"round {stage}",
            rollouts=len(planned),
            shown=shown,
            budget=planned[0].ask.max_tokens,
        )

    def write(self, number: int, text: str) -> None:
        self._tell(event="text", rollout=number, text=text)

    def end(self, number: int, sample: Sample) -> None:
        self._samples[number] = sample
        tail = prompts.candidate(sample, self._settings, self._tokenizer)
        self._tell(
            event="rollout",
            rollout=number,
            tokens=sample.tokens,
            prompt_tokens=sample.prompt_tokens,
            finish=sample.finish,
            answer=selection.answers([sample], self._settings.kind)[0],
            tail=tail.text,
            cut=tail.truncated,
        )
        if len(self._samples) == self._population:
            samples = [self._samples[i] for i in sorted(self._samples)]
            votes = selection.majority(samples, self._settings.kind).votes
            self._tell(event="votes", votes=[vote._asdict() for vote in votes])

    def select(self, chosen: Chosen) -> None:
        self._tell(event="answer", answer=chosen.answer, rollout=chosen.rollout)

    def finish(self) -> None:
        """There will be no more news."""
        self._call(self._end)

    def _tell(self, **news: Any) -> None:
        self._call(self._add, news)

    def _call(self, function: Callable[..., None], *arguments: Any) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)

    def _add(self, news: dict[str, Any]) -> None:
        """Keeps news; text of a rollout joins the text that waits already."""
        if news["event"] == "text":
            for known in reversed(self._news):
                if known["event"] != "text":
                    break
                if known["rollout"] == news["rollout"]:
                    known["text"] += news["text"]
                    return
        self._news.append(news)
        self._arrived.set()

    def _end(self) -> None:
        self._ended = True
        self._arrived.set()

    async def news(self) -> AsyncGenerator[dict[str, Any], None]:
        """What happened, until the run has ended."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            news, self._news = self._news, []
            for item in news:
                yield item
            if self._ended and not self._news:
                return
            await asyncio.sleep(PAUSE)


def settings_of(body: schema.ChatRequest) -> Settings:
    """The numbers of a run: the preset's, and what the request changes.

    Raises:
      ApiError: an unknown preset, or numbers that do not fit together.
    """
    asked = body.rsa
    assert asked is not None
    preset = asked.preset or RECOMMENDED
    if preset not in PRESETS:
        raise ApiError(400, f"rsa.preset = {preset!r}{hint(preset, PRESETS)}", param="rsa")
    changes = asked.model_dump(exclude_none=True, exclude={"preset", "trace"})
    if "budget" in changes and "final_budget" not in changes:
        changes["final_budget"] = None
    if (final := budget_of(body)) is not None:
        changes["final_budget"] = final
    seed = secrets.randbits(62) if body.seed is None else body.seed % 2**63
    sampling = Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=None if body.top_k in (-1, 0) else body.top_k,
        top_p=1.0 if body.top_p is None else body.top_p,
        min_p=body.min_p or 0.0,
    )
    try:
        return dataclasses.replace(PRESETS[preset], **changes, sampling=sampling, seed=seed)
    except UserError as error:
        raise of_user_error(error, "rsa") from error


def limited(settings: Settings, most: int | None) -> Settings:
    """The same with rollouts of so many tokens at most: the server's limit on completions."""
    if most is None:
        return settings
    final = settings.final_budget
    return dataclasses.replace(
        settings,
        budget=min(settings.budget, most),
        final_budget=None if final is None else min(final, most),
    )


def conversation_of(messages: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """A conversation of texts.

    Raises:
      ValueError: malformed messages.
    """
    return parse(plain(messages), lenient=True)


def message_of(sample: Sample) -> dict[str, Any]:
    """A rollout as a message: what stands before the end of thinking is reasoning."""
    text, (opening, closing) = sample.text, THINK
    message: dict[str, Any] = {"role": "assistant"}
    thought = sample.thinking or text.lstrip().startswith(opening)
    if not thought:
        return message | {"content": text.strip()}
    reasoning, closed, content = text.partition(closing)
    reasoning = reasoning.replace(opening, "", 1).strip()
    message["content"] = content.strip() if closed else None
    if reasoning:
        message["reasoning_content"] = reasoning
    return message
