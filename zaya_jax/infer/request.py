"""What is asked for and what comes back, and an answer on its way from the one to the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from zaya_jax.errors import UserError
from zaya_jax.infer.sampler import Sampling
from zaya_jax.infer.text import TextStream
from zaya_jax.load import Loaded


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to continue.

    prompt: text, or token ids taken as they are. Text of a tokenizer that opens texts with a
      begin-of-sequence token gets one. An empty prompt stands for that token (if there is none,
      for end-of-sequence).
    max_tokens: of the completion, end-of-sequence included.
    sampling: how each token is chosen; greedy by default.
    stop: strings before which the text ends.
    """

    prompt: str | Sequence[int]
    max_tokens: int = 256
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()


Finish = Literal["eos", "stop", "length"]


@dataclasses.dataclass(frozen=True)
class Completion:
    """What was generated for one request.

    text: without special tokens, without the stop string and what follows.
    tokens: all tokens chosen: an end-of-sequence is the last of them, as is the token that
      completed a stop string.
    logprobs: of each token, in nats, under the model at temperature 1.
    finish: `eos`, `stop` (a stop string) or `length` (max_tokens or the context).
    prompt_tokens: ids that the prompt became.
    notes: what was changed in the request.
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish: Finish
    prompt_tokens: int
    notes: tuple[str, ...] = ()


class Answer:
    """A request on its way: checked on creation, then fed token by token.

    Attributes:
      prompt: ids of the prompt.
      tokens, logprobs: what was chosen so far.
      remaining: tokens that may still come; 0 once it has ended.
      finish: why it ended, once it has.
      notes: what was changed in the request.
      stop_ids: tokens that end it.
    """

    def __init__(self, loaded: Loaded, request: Request, capacity: int):
        """Args: capacity: tokens that there is room for, prompt and completion.

        Raises:
          UserError: a prompt that is too long, holds an id outside the vocabulary, or is text
            where there is no tokenizer; max_tokens below 1; an empty stop string.
        """
        self.request, self.source = request, loaded.source.path
        self.prompt = encode(loaded, request.prompt)
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.notes: tuple[str, ...] = ()
        self.finish: Finish = "length"
        if request.max_tokens < 1:
            raise UserError(f"max_tokens = {request.max_tokens}: expected at least 1")
        if "" in request.stop:
            raise UserError("stop: an empty string ends every text before it begins")
        if request.stop:
            loaded.require_tokenizer()
        room = room_behind(loaded, self.prompt, capacity)
        self.remaining = min(request.max_tokens, room)
        if self.remaining < request.max_tokens:
            self.notes = (
                f"max_tokens = {request.max_tokens} lowered to {room}: the prompt has "
                f"{len(self.prompt)} tokens of the {capacity} that fit",
            )
        self.stop_ids = loaded.stop_ids
        self._text = TextStream(loaded.tokenizer, request.stop)

    @property
    def text(self) -> str:
        """What is certain of the text."""
        return self._text.text

    def push(self, token: int, logprob: float) -> str:
        """Takes the next token; returns the text that became certain.

        Raises:
          UserError: the log-probability is not finite.
        """
        if not np.isfinite(logprob):
            raise UserError(f"--model={self.source}: no logit is finite; are its weights damaged?")
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.remaining -= 1
        if token in self.stop_ids:
            self.finish, self.remaining = "eos", 0
            return self._text.close()
        text = self._text.push(token)
        if not self.remaining and not self._text.stopped:
            text += self._text.close()
        if self._text.stopped:
            self.finish, self.remaining = "stop", 0
        return text

    def close(self) -> str:
        """Ends it from outside; returns the text that was held back."""
        self.remaining = 0
        return self._text.close()

    def completion(self) -> Completion:
        """What was generated."""
        return Completion(
            self.text,
            self.tokens,
            self.logprobs,
            self.finish,
            len(self.prompt),
            self.notes,
        )


def room_behind(loaded: Loaded, ids: Sequence[int], capacity: int) -> int:
    """Tokens that there is room for behind a prompt.

    Raises:
      UserError: there is none.
    """
    if len(ids) < capacity:
        return capacity - len(ids)
    limit = "model.context_length" if capacity == loaded.model.context_length else "capacity"
    raise UserError(
        f"the prompt has {len(ids)} tokens: {limit} = {capacity} must hold it and at least one more"
    )


def encode(loaded: Loaded, prompt: str | Sequence[int]) -> list[int]:
    """The ids of a prompt; see `Request`.

    Raises:
      UserError: text without a tokenizer, or an id outside the model's vocabulary.
    """
    if isinstance(prompt, str):
        ids = loaded.require_tokenizer().encode(prompt)
        if loaded.opens_with_bos:
            ids = [loaded.start_id, *ids]
    else:
        ids = [int(i) for i in prompt]
    ids = ids or [loaded.start_id]
    size = loaded.model.vocab_size
    outside = sorted({i for i in ids if not 0 <= i < size})
    if outside:
        why = "; its tokenizer is larger than the model" if isinstance(prompt, str) else ""
        raise UserError(
            f"the prompt holds ids {outside[:5]}, outside model.vocab_size = {size}{why}"
        )
    return ids
