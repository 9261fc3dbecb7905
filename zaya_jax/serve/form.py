"""Conversations as a model's token ids, and the tokens that structure what it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from zaya_jax.data import chat
from zaya_jax.data.messages import THINK, parse
from zaya_jax.infer.rsa.generator import Chat
from zaya_jax.load import Loaded
from zaya_jax.serve.errors import ApiError, of_user_error, unsupported

CALL = chat.TOOL_TAGS[:2]
"""The tags around a tool call."""


class Prompt(NamedTuple):
    """ids: after which the model is to answer. thinking: whether they end in a think block."""

    ids: list[int]
    thinking: bool


class Form:
    """Writes conversations for one model.

    Attributes:
      rsa: the same for Markovian RSA; None if the model has no tokenizer.
      controls: names of the tags of thinking and of tool calls, by id: those that are one token.
    """

    def __init__(self, loaded: Loaded, template: str | None = None):
        """Args: template: a Jinja file; the tokenizer's own by default, or else ours.

        Raises:
          UserError: a template that cannot be read, or does not fit the tokenizer.
        """
        self._tokenizer = loaded.tokenizer
        self.rsa = None if loaded.tokenizer is None else Chat(loaded, template)
        self.controls: dict[int, str] = {}
        if loaded.tokenizer is not None and self.chats:
            ids = {name: loaded.tokenizer.id_of(name) for name in (*THINK, *CALL)}
            self.controls = {i: name for name, i in ids.items() if i is not None}

    @property
    def chats(self) -> bool:
        """Whether there is a chat template; otherwise the model continues the messages' texts."""
        return self.rsa is not None and self.rsa.template is not None

    @property
    def thinks(self) -> bool:
        """Whether the tokenizer has the tags of thinking."""
        return all(self.id_of(name) is not None for name in THINK)

    def id_of(self, name: str) -> int | None:
        """The id of a tag; None if it is not one token."""
        return next((i for i, known in self.controls.items() if known == name), None)

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        enable_thinking: bool | None,
    ) -> Prompt:
        """The prompt of a conversation.

        Raises:
          ApiError: malformed messages; tools without a chat template; no tokenizer.
        """
        if self.rsa is None:
            raise ApiError(400, "this model has no tokenizer: send token ids to /v1/completions")
        assert self._tokenizer is not None
        if tools and not self.chats:
            raise unsupported("tools", "this model has no chat template, which would show them")
        try:
            if self.rsa.template is None:
                ids = self.rsa.encode(parse(plain(messages), lenient=True))
            else:
                ids = chat.prompt(
                    plain(messages),
                    self._tokenizer,
                    self.rsa.template,
                    tools,
                    enable_thinking=enable_thinking,
                    lenient=True,  # an answer of the model's may come back as it was
                )
        except ValueError as error:  # a UserError, too
            raise of_user_error(error) from error
        return Prompt(ids, self.rsa.opens_thinking(ids))


def plain(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages as the template knows them: a developer is who else is called system."""
    return [
        {**message, "role": "system"} if message.get("role") == "developer" else dict(message)
        for message in messages
    ]
