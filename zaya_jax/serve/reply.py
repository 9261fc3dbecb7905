"""What the model writes, taken apart as it comes: reasoning, content, tool calls.

Tags are tokens. Of the text that the engine sends, special tokens are no part, so where a tag stood
is kept as a place in the text; and because the engine holds text back that may become a stop
string, a tag counts only when the text has come as far as its place.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from zaya_jax.data.messages import THINK
from zaya_jax.data.tokenizer import Stream, Tokenizer
from zaya_jax.infer.engine import Event
from zaya_jax.serve.form import CALL
from zaya_jax.serve.tools import Call, Schema


class Piece(NamedTuple):
    """A part of a message that is new.

    kind: `reasoning`, `content`, or `call`.
    text: of it; of a call, the next characters of its arguments.
    number: of the call. id, name: given with its first piece.
    """

    kind: str
    text: str
    number: int = 0
    id: str | None = None
    name: str | None = None


class _Mark(NamedTuple):
    """A tag: where it stands in the text, how many characters of the text are itself, its name."""

    at: int
    width: int
    name: str


class Reply:
    """One message of the assistant's.

    Attributes:
      reasoning_tokens: how many were written in think blocks, tags included.
      calls: tool calls so far.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        controls: Mapping[int, str],
        *,
        thinking: bool = False,
        tools: Mapping[str, Schema] | None = None,
    ):
        """Args:
        controls: names of tags by id; without any, all that is written is content, as it is.
        thinking: whether the prompt has opened a think block.
        tools: schemas of the parameters of what may be called; None if nothing may.
        """
        self._controls, self._tools, self._trims = controls, tools, bool(controls)
        self._stream, self._vocab = Stream(tokenizer), tokenizer.vocab_size
        self._marks: deque[_Mark] = deque()
        self._length = 0  # characters that the tokens so far stand for
        self._rest, self._read = "", 0  # text that has come, and where it begins
        self._state = "reasoning" if thinking else "content"
        self._thinks = thinking  # as of the last token; the text may not have come as far
        self._call: Call | None = None
        self._named = False
        self._fresh, self._held = True, ""  # nothing written yet in this state; white space kept
        self.reasoning_tokens, self.calls = 0, 0

    def push(self, event: Event) -> list[Piece]:
        """What an event adds to the message."""
        for token in event.tokens:
            written = self._stream.push(token.id) if token.id < self._vocab else ""
            name = self._controls.get(token.id)
            if name is not None:
                self._marks.append(_Mark(self._length, len(written), name))
            self._length += len(written)
            self._thinks = self._thinks or name == THINK[0]
            self.reasoning_tokens += self._thinks
            self._thinks = self._thinks and name != THINK[1]
        self._rest += event.text
        pieces = self._advance()
        if event.result is not None:
            pieces += self._close()
        return merged(pieces)

    def _advance(self) -> list[Piece]:
        """Reads as far as the text has come."""
        pieces: list[Piece] = []
        while True:
            mark = self._marks[0] if self._marks else None
            end = len(self._rest) if mark is None else min(len(self._rest), mark.at - self._read)
            pieces += self._write(self._rest[:end])
            self._rest, self._read = self._rest[end:], self._read + end
            if mark is None or self._read < mark.at or len(self._rest) < mark.width:
                return pieces
            self._marks.popleft()
            self._rest, self._read = self._rest[mark.width :], self._read + mark.width
            pieces += self._turn(mark.name)

    def _write(self, text: str) -> list[Piece]:
        """Text in the state that the message is in."""
        if not text:
            return []
        if self._call is not None:
            return self._pieces_of_call(self._call.push(text))
        if not self._trims:
            return [Piece("content", text)]
        text = self._held + text
        if self._fresh:
            text = text.lstrip()
        # White space may turn out to stand at the end of what is written, where it is no part.
        kept = text.rstrip() if self._state == "reasoning" or self.calls else text
        self._held = text[len(kept) :]
        if not kept:
            return []
        self._fresh = False
        return [Piece(self._state, kept)]

    def _turn(self, name: str) -> list[Piece]:
        """A tag: the message goes on in another state."""
        if name == THINK[0] and self._state == "content" and self._call is None:
            return self._enter("reasoning")
        if name == THINK[1] and self._state == "reasoning":
            return self._enter("content")
        if name == CALL[0] and self._call is None and self._tools is not None:
            pieces = self._enter("content")
            self._call, self._named = Call(self._tools), False
            return pieces
        if name == CALL[1] and self._call is not None:
            return self._end_call()
        if name in CALL:  # nothing to call: what is written there is not lost
            return self._write(name)
        return []

    def _enter(self, state: str) -> list[Piece]:
        self._state, self._fresh, self._held = state, True, ""
        return []

    def _pieces_of_call(self, arguments: str) -> list[Piece]:
        call, pieces = self._call, []
        assert call is not None
        if call.name is not None and not self._named:
            self._named = True
            id = f"call_{secrets.token_hex(12)}"
            pieces.append(Piece("call", "", self.calls, id, call.name))
            self.calls += 1
        if arguments:
            pieces.append(Piece("call", arguments, self.calls - 1))
        return pieces

    def _end_call(self) -> list[Piece]:
        call = self._call
        assert call is not None
        pieces = self._pieces_of_call(call.close())
        self._call = None
        if not self._named:  # no call, whatever it is
            pieces += self._write(CALL[0] + call.text + CALL[1])
        return pieces

    def _close(self) -> list[Piece]:
        """The end: tags behind a stop string do not count; a call that was cut stays cut."""
        if self._call is not None and not self._named:
            call, self._call = self._call, None
            return self._write(CALL[0] + call.text)
        return []


def merged(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of a kind as one."""
    out: list[Piece] = []
    for piece in pieces:
        last = out[-1] if out else None
        same = last is not None and (last.kind, last.number) == (piece.kind, piece.number)
        if same and last is not None and piece.id is None:
            out[-1] = last._replace(text=last.text + piece.text)
        else:
            out.append(piece)
    return out


class Message:
    """The whole of the pieces: what a client that does not stream gets."""

    def __init__(self):
        self.reasoning, self.content = "", ""
        self.calls: list[dict[str, Any]] = []

    def add(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if piece.kind == "reasoning":
                self.reasoning += piece.text
            elif piece.kind == "content":
                self.content += piece.text
            elif piece.id is not None:
                function = {"name": piece.name, "arguments": piece.text}
                self.calls.append({"id": piece.id, "type": "function", "function": function})
            else:
                self.calls[piece.number]["function"]["arguments"] += piece.text

    def as_json(self) -> dict[str, Any]:
        """As the OpenAI API has it; fields that have nothing to say are left out."""
        empty_is_null = bool(self.calls or self.reasoning)
        message: dict[str, Any] = {"role": "assistant"}
        message["content"] = self.content or (None if empty_is_null else "")
        if self.reasoning:
            message["reasoning_content"] = self.reasoning
        if self.calls:
            message["tool_calls"] = self.calls
        return message
