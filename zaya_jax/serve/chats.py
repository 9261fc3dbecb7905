"""/v1/chat/completions: answers in conversations, with reasoning and tool calls."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from zaya_jax.infer.engine import Constraint, Event, Request, Token
from zaya_jax.serve import constrain, schema
from zaya_jax.serve.errors import ApiError
from zaya_jax.serve.form import Prompt
from zaya_jax.serve.reply import Message, Piece, Reply
from zaya_jax.serve.service import FINISH, Record, Run, Service, Usage, repetition, stops
from zaya_jax.serve.streams import DONE, sse
from zaya_jax.serve.tools import check_sizes


class Envelope:
    """What stands around every answer to a chat, whole or in pieces."""

    def __init__(self, service: Service):
        self._service = service
        self._id, self._created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def __call__(self, choices: Sequence[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "chat.completion.chunk" if chunk else "chat.completion",
            "created": self._created,
            "model": self._service.settings.name,
            "system_fingerprint": self._service.fingerprint,
            "choices": list(choices),
        }


class Chat:
    """One request on its way."""

    def __init__(self, service: Service, body: schema.ChatRequest, record: Record):
        schema.refuse(body)
        service.check_model(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs: only with logprobs: true", param="top_logprobs")
        service.check_top(body.top_logprobs or 0, "top_logprobs")
        self._service, self._body, self._record = service, body, record
        self._tokens = service.budget(budget_of(body))
        self._envelope = Envelope(service)
        self._usage = Usage()
        self._tools = tools_of(body)
        self._prompt = Prompt([], False)
        self._replies: list[Reply] = []

    async def begin(self) -> Run:
        """Submits all choices.

        Raises:
          ApiError: messages that make no prompt, tools that cannot be called; no room.
        """
        thinking = thinking_of(self._body)
        run = self._service.enter(self._body.n or 1, self._record)
        try:
            await run.begin(await self._requests(thinking))
        except BaseException:
            run.close()
            raise
        return run

    async def _requests(self, thinking: bool | None) -> list[Request]:
        body, service, form = self._body, self._service, self._service.form
        schemas = {tool.function.name: tool.function.parameters or {} for tool in self._tools}
        self._prompt, bound = await asyncio.to_thread(self._prepare, schemas, thinking)
        constraint = await service.compiler(bound)
        requests = [
            Request(
                prompt=self._prompt.ids,
                max_tokens=self._tokens,
                sampling=sampling,
                stop=stops(body.stop),
                top_logprobs=body.top_logprobs or 0,
                constraint=constraint,
                repetition=repetition(body.repetition_guard),
                ignore_eos=body.ignore_eos,
                cache_salt=service.salt(self._record),
            )
            for sampling in service.samplings(body)
        ]
        assert service.tokenizer is not None
        self._replies = [
            Reply(
                service.tokenizer,
                form.controls,
                thinking=self._prompt.thinking,
                tools=schemas if self._tools else None,
            )
            for _ in requests
        ]
        return requests

    def _prepare(
        self, schemas: Mapping[str, Any], thinking: bool | None
    ) -> tuple[Prompt, Constraint | None]:
        """The prompt and what binds the answer: outside the event loop, as they may take long.

        Args: schemas: of the parameters of tools, by name.
        """
        body, form = self._body, self._service.form
        check_sizes(schemas)
        tools = [tool.model_dump(exclude_none=True) for tool in self._tools]
        prompt = form.encode(body.messages, tools or None, thinking)
        bound = constrain.of_chat(
            body, tools, form, opened=prompt.thinking, enable_thinking=thinking
        )
        return prompt, bound

    async def whole(self, run: Run) -> dict[str, Any]:
        """The answer, once all of it is there."""
        messages = [Message() for _ in self._replies]
        tokens: list[list[Token]] = [[] for _ in self._replies]
        finishes = [""] * len(messages)
        try:
            async for number, event in run.events():
                messages[number].add(self._replies[number].push(event))
                tokens[number] += event.tokens
                if event.result is not None:
                    finishes[number] = self._end(number, event)
        finally:
            run.close()
        choices = []
        for number, message in enumerate(messages):
            choices.append(
                {
                    "index": number,
                    "message": message.as_json(),
                    "logprobs": self._logprobs(tokens[number]),
                    "finish_reason": finishes[number],
                    **self._ids(tokens[number]),
                }
            )
        answer = self._envelope(choices, chunk=False) | {"usage": self._usage.as_json()}
        if self._body.return_token_ids:
            answer["prompt_token_ids"] = self._prompt.ids
        return answer

    async def stream(self, run: Run) -> AsyncGenerator[bytes, None]:
        """The answer piece by piece, as server-sent events."""
        options = self._body.stream_options
        try:
            for number in range(len(self._replies)):
                yield self._chunk(number, {"role": "assistant", "content": ""})
            async for number, event in run.events():
                deltas = [_delta(piece) for piece in self._replies[number].push(event)]
                for i, delta in enumerate(deltas or ([{}] if self._tell(event) else [])):
                    # Scores of an event belong to it as a whole: its first piece has them.
                    yield self._chunk(number, delta, event.tokens if i == 0 else ())
                if event.result is not None:
                    yield self._chunk(number, {}, finish=self._end(number, event))
            if options is not None and options.include_usage:
                usage = {"usage": self._usage.as_json()}
                yield sse(self._envelope([], chunk=True) | usage)
            yield DONE
        finally:
            run.close()

    def _tell(self, event: Event) -> bool:
        """Whether an event without a piece has something to say all the same."""
        return bool(event.tokens) and bool(self._body.logprobs or self._body.return_token_ids)

    def _chunk(
        self,
        number: int,
        delta: dict[str, Any],
        tokens: Sequence[Token] = (),
        finish: str | None = None,
    ) -> bytes:
        choice = {
            "index": number,
            "delta": delta,
            "logprobs": self._logprobs(tokens) if tokens else None,
            "finish_reason": finish,
            **(self._ids(tokens) if tokens else {}),
        }
        return sse(self._envelope([choice], chunk=True))

    def _end(self, number: int, event: Event) -> str:
        """The reason why a choice ended."""
        reply, result = self._replies[number], event.result
        assert result is not None
        self._usage.add(0, event, written=len(result.tokens), reasoning=reply.reasoning_tokens)
        finish = FINISH.get(result.finish, result.finish)
        return "tool_calls" if finish == "stop" and reply.calls else finish

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        return self._service.names.chat(tokens) if self._body.logprobs else None

    def _ids(self, tokens: Sequence[Token]) -> dict[str, Any]:
        return {"token_ids": [t.id for t in tokens]} if self._body.return_token_ids else {}


def _delta(piece: Piece) -> dict[str, Any]:
    """A piece as the API streams it."""
    if piece.kind != "call":
        return {"reasoning_content" if piece.kind == "reasoning" else "content": piece.text}
    call: dict[str, Any] = {"index": piece.number, "function": {"arguments": piece.text}}
    if piece.id is not None:
        call |= {"id": piece.id, "type": "function"}
        call["function"] = {"name": piece.name, "arguments": piece.text}
    return {"tool_calls": [call]}


def budget_of(body: schema.ChatRequest) -> int | None:
    """The tokens that a request asks for, under either name.

    Raises:
      ApiError: two different numbers.
    """
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise ApiError(
            400,
            f"max_tokens = {old} and max_completion_tokens = {new}: give one of them",
            param="max_tokens",
        )
    return old if new is None else new


def thinking_of(body: schema.ChatRequest) -> bool | None:
    """Whether the model may think; None leaves it to the template.

    Raises:
      ApiError: two fields that say different things.
    """
    asked = body.chat_template_kwargs.enable_thinking if body.chat_template_kwargs else None
    if body.reasoning_effort is None:
        return asked
    effort = body.reasoning_effort != "none"
    if asked is not None and asked != effort:
        raise ApiError(
            400,
            f"reasoning_effort = {body.reasoning_effort} and enable_thinking = {asked}: give one",
            param="reasoning_effort",
        )
    return effort


def tools_of(body: schema.ChatRequest) -> list[schema.Tool]:
    """The tools that the model may call: those that it is shown.

    Raises:
      ApiError: a name twice; a choice that there is not.
    """
    tools = body.tools or []
    names = [tool.function.name for tool in tools]
    if len(set(names)) < len(names):
        raise ApiError(400, "tools: two functions have the same name", param="tools")
    if isinstance(body.tool_choice, schema.NamedTool):
        wanted = body.tool_choice.function.name
        if wanted not in names:
            raise ApiError(
                400, f"tool_choice: no function {wanted!r} among the tools", param="tool_choice"
            )
        return [tool for tool in tools if tool.function.name == wanted]
    if body.tool_choice == "required" and not tools:
        raise ApiError(400, "tool_choice: required, and there are no tools", param="tool_choice")
    return [] if body.tool_choice == "none" else tools
