"""/v1/completions: texts that are continued, and prompts that are scored."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

from zaya_jax.infer.engine import Event, Request, Token
from zaya_jax.serve import constrain, schema
from zaya_jax.serve.errors import ApiError
from zaya_jax.serve.logprobs import Listing
from zaya_jax.serve.service import FINISH, Record, Run, Service, Usage, repetition, stops
from zaya_jax.serve.streams import DONE, sse

DEFAULT_TOKENS = 16
"""Of a completion, where the request does not say; as the OpenAI API has it."""
EXPECTED = "expected a text, a list of texts, a list of token ids, or a list of such lists"


class Asked(NamedTuple):
    """One prompt. text: as it is echoed."""

    ids: list[int]
    text: str


def prompts_of(value: Any) -> list[str | list[int]]:
    """The prompts of a request.

    Raises:
      ApiError: none, or something else.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(type(item) is int for item in value):
            return [value]
        texts = all(isinstance(item, str) for item in value)
        lists = all(
            isinstance(item, list) and item and all(type(i) is int for i in item) for item in value
        )
        if texts:
            return list(value)
        if lists:
            return list(value)
    raise ApiError(400, f"prompt: {EXPECTED}", param="prompt")


def _check(text: str) -> None:
    """Raises ApiError for what is no Unicode text: JSON can write halves of characters, too."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ApiError(400, f"prompt: no Unicode text: {error.reason}", param="prompt") from None


class Completions:
    """One request on its way."""

    def __init__(self, service: Service, body: schema.CompletionRequest, record: Record):
        schema.refuse(body)
        service.check_model(body.model)
        service.check_top(body.logprobs or 0, "logprobs")
        self._service, self._body, self._record = service, body, record
        self._echo, self._choices = bool(body.echo), body.n or 1
        self._tokens = service.budget(body.max_tokens, DEFAULT_TOKENS)
        # A prompt is only scored by asking for one token more, which nobody gets to see.
        self._silent = self._tokens == 0
        self._prompts: list[Asked] = []
        self._listings: list[Listing] = []
        self._usage = Usage()
        self._id = f"cmpl-{secrets.token_hex(12)}"

    async def begin(self) -> Run:
        """Submits all choices of all prompts.

        Raises:
          ApiError: a prompt that cannot be continued; no room.
        """
        prompts = prompts_of(self._body.prompt)
        run = self._service.enter(len(prompts) * self._choices, self._record, prompts)
        try:
            await run.begin(await self._requests(prompts))
        except BaseException:
            run.close()
            raise
        return run

    async def _requests(self, prompts: Sequence[str | list[int]]) -> list[Request]:
        body, service = self._body, self._service
        for prompt in prompts:
            if isinstance(prompt, str):
                _check(prompt)
            ids = await service.encode(prompt)
            text = prompt if isinstance(prompt, str) else self._decode(ids)
            self._prompts.append(Asked(ids, text))
        constraint = await service.compiler(constrain.of_text(body.response_format))
        requests = [
            Request(
                prompt=asked.ids,
                max_tokens=max(self._tokens, 1),
                sampling=sampling,
                stop=stops(body.stop),
                top_logprobs=body.logprobs or 0,
                score_prompt=self._echo and body.logprobs is not None,
                constraint=constraint,
                repetition=repetition(body.repetition_guard),
                ignore_eos=body.ignore_eos,
                cache_salt=service.salt(self._record),
            )
            for asked in self._prompts
            for sampling in service.samplings(body)
        ]
        top = body.logprobs is not None
        self._listings = [Listing(service.names, service.tokenizer, top=top) for _ in requests]
        return requests

    async def whole(self, run: Run) -> dict[str, Any]:
        """The answer, once all of it is there."""
        try:
            choices: dict[int, dict[str, Any]] = {}
            async for number, event in run.events():
                self._extend(choices, number, event)
            return self._chunk([choices[i] for i in sorted(choices)]) | {
                "usage": self._usage.as_json()
            }
        finally:
            run.close()

    async def stream(self, run: Run) -> AsyncGenerator[bytes, None]:
        """The answer piece by piece, as server-sent events."""
        options = self._body.stream_options
        try:
            begun: set[int] = set()
            async for number, event in run.events():
                choice = self._choice(number, event, first=number not in begun)
                # The scores of a prompt are known at the end: its echo waits for them.
                if choice is not None:
                    begun.add(number)
                    yield sse(self._chunk([choice]))
            if options is not None and options.include_usage:
                yield sse(self._chunk([]) | {"usage": self._usage.as_json()})
            yield DONE
        finally:
            run.close()

    def _extend(self, choices: dict[int, dict[str, Any]], number: int, event: Event) -> None:
        new = self._choice(number, event, first=number not in choices)
        if new is None:
            return
        known = choices.setdefault(number, new)
        if known is new:
            return
        known["text"] += new["text"]
        known["finish_reason"] = new["finish_reason"]
        if new["logprobs"] is not None:
            for name, values in new["logprobs"].items():
                if values is not None:
                    known["logprobs"][name] += values
        for name in ("token_ids",):
            if name in new:
                known[name] += new[name]

    def _choice(self, number: int, event: Event, *, first: bool) -> dict[str, Any] | None:
        """What an event adds to a choice; None if that is to wait."""
        body, result = self._body, event.result
        asked = self._prompts[number // self._choices]
        scoring = self._echo and body.logprobs is not None
        if scoring and result is None:
            return None
        text, tokens = event.text, event.tokens
        if scoring and result is not None:  # all at once
            text = result.text
            best = result.best or [()] * len(result.tokens)
            tokens = tuple(map(Token, result.tokens, result.logprobs, result.versions, best))
        if self._silent:
            text, tokens = "", ()
        shown: list[Token | int] = list(tokens)
        if self._echo and first:
            text = asked.text + text
            if scoring and result is not None:
                shown = [*_scored(asked.ids, result), *shown]
        finish = None
        if result is not None:
            finish = "length" if self._silent else FINISH.get(result.finish, result.finish)
            written = 0 if self._silent else len(result.tokens)
            self._usage.add(number // self._choices, event, written=written)
        choice = {
            "index": number,
            "text": text,
            "logprobs": None if body.logprobs is None else self._listings[number].add(shown),
            "finish_reason": finish,
        }
        if body.return_token_ids:
            choice["token_ids"] = [token.id for token in tokens]
            if first:
                choice["prompt_token_ids"] = asked.ids
        return choice

    def _chunk(self, choices: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": self._service.settings.name,
            "system_fingerprint": self._service.fingerprint,
            "choices": list(choices),
        }

    def _decode(self, ids: Sequence[int]) -> str:
        tokenizer = self._service.tokenizer
        if tokenizer is None or not self._echo:
            return ""
        return tokenizer.decode([i for i in ids if i < tokenizer.vocab_size])


def _scored(ids: Sequence[int], result) -> list[Token | int]:
    """The tokens of a prompt with their scores; the first has none."""
    best = result.prompt_best or [()] * len(result.prompt_logprobs)
    rest = map(Token, ids[1:], result.prompt_logprobs, [0] * (len(ids) - 1), best)
    return [ids[0], *rest]
