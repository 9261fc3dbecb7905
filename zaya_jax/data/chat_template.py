"""Chat templates: Jinja run in a sandbox, with the origin of every character of its output.

A template's text holds control tokens; the texts of messages must not be able to. Once rendered,
the two look alike. So the texts are rendered between marks, characters that occur nowhere else,
which survive what templates do (trim, concatenate, write as JSON) and tell afterwards what came
from which message. A template that the marks would mislead is found out and refused: its output
must be the same with and without them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zaya_jax.data.messages import THINK_TAG
from zaya_jax.data.sandbox import Template
from zaya_jax.errors import UserError

CHATML = Path(__file__).with_name("chatml.jinja")
TOOLS = -1
"""In the place of a message's number: the text came from the descriptions of tools."""

_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_COMMENT = re.compile(r"\{#.*?#\}", re.S)
_CONTROL = re.compile(r"<\|[^\s|<>]+\|>|</?think>|</?zyphra_tool_(?:call|response)>")
_MARKS = range(0x20000, 0x2A6D7)  # rare, but printable: Python's repr leaves them as they are
_UNMARKED = frozenset({"role", "type"})  # fields that templates compare with constants


class Span(NamedTuple):
    """Characters `start` to `stop` of a rendered text that came from message number `message`."""

    start: int
    stop: int
    message: int


class Rendered(NamedTuple):
    """A conversation as text.

    Attributes:
        text: what the template wrote.
        data: the parts of it that came from messages or tools, in order. White space at their ends
            is not counted, nor are think tags in an assistant's content.
        generated: (start, stop) of the template's `{% generation %}` blocks, in order.
        unmarked: names of fields, and texts that templates compare with constants: wherever they
            stand in `text`, they are not among `data`.
    """

    text: str
    data: tuple[Span, ...]
    generated: tuple[tuple[int, int], ...]
    unmarked: frozenset[str]


class ChatTemplate(Template):
    """A chat template in Jinja, of the dialect that transformers defines; see `Template`.

    Attributes:
        controls: the control tokens that it names, which a tokenizer must have.
        marks_generation: whether it says in `{% generation %}` blocks what the model produces.
    """

    def __init__(self, source: str, name: str = "chat template"):
        """Compiles a template; raises UserError if it is not Jinja, naming the line."""
        super().__init__(source, name)
        text = _COMMENT.sub("", source)
        self.controls = tuple(dict.fromkeys(_CONTROL.findall(text)))
        self.marks_generation = bool(_GENERATION.search(text))

    @property
    def sha256(self) -> str:
        """Hash (hex) of the source."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    @classmethod
    def find(
        cls, path: Path | str | None = None, tokenizer: Path | str | None = None
    ) -> ChatTemplate:
        """The template to use: the file that is named, else the tokenizer's own, else our ChatML.

        Args:
            path: a Jinja file.
            tokenizer: a `tokenizer.json` or its folder. Its template is `chat_template.jinja`, or
                `chat_template` in `tokenizer_config.json` (of several, the one named `default`).

        Raises:
            UserError: a template cannot be read or compiled.
        """
        if path is not None:
            return cls.load(path)
        if tokenizer is not None:
            folder = Path(tokenizer).expanduser()
            folder = folder if folder.is_dir() else folder.parent
            if (file := folder / "chat_template.jinja").is_file():
                return cls.load(file)
            if (file := folder / "tokenizer_config.json").is_file():
                if (source := _setting(file)) is not None:
                    return cls(source, f"chat_template of {file}")
        return cls.load(CHATML)

    def conversation(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        **variables: Any,
    ) -> str:
        """The text of messages that were parsed (`messages.parse`).

        Args:
            messages: of the conversation.
            tools: descriptions of tools.
            **variables: what else the template reads: `add_generation_prompt`, `enable_thinking`,
                and the tokenizer's `bos_token`, `eos_token`, `pad_token`.

        Raises:
            ValueError: the template refuses the conversation or fails on it.
        """
        return self._run(messages, tools, variables, ("", ""))

    def trace(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        **variables: Any,
    ) -> Rendered:
        """`conversation`, and where every part of the text came from.

        Raises:
            ValueError: as `conversation`; or the template takes texts apart, or decides by how they
                begin or end, so that data and control tokens cannot be told apart.
        """
        plain = self.conversation(messages, tools, **variables)
        pair = _unused(plain, self.source, *_strings([messages, tools, variables]))
        fence = _Fence(*pair)
        marked = self._run(
            [fence.message(message, i) for i, message in enumerate(messages)],
            fence.value(tools, TOOLS),
            variables,
            pair,
        )
        rendered = fence.read(marked)
        if rendered is None or rendered.text != plain:
            raise ValueError(
                f"{self.name} looks into the texts of messages: what is control token and what is "
                f"text cannot be told apart in its output"
            )
        return rendered

    def _run(self, messages, tools, variables: Mapping[str, Any], marks: tuple[str, str]) -> str:
        variables = {"add_generation_prompt": False, "documents": None, **variables}
        return self.render(messages=messages, tools=tools, _marks=marks, **variables)


class _Fence:
    """Sets texts between marks, and reads the marks again.

    With the two mark characters written ( and ): the text of message 3 stands as `(3)text()`, a
    generation block as `(<)text(>)`.
    """

    def __init__(self, left: str, right: str):
        self._left, self._right = left, right
        self._unmarked: set[str] = set()

    def message(self, message: Mapping[str, Any], number: int) -> dict[str, Any]:
        """A message with its texts between marks; think tags of an assistant stay outside."""
        fenced = self.value(message, number)
        if message["role"] == "assistant":
            parts = THINK_TAG.split(message["content"])
            parts[::2] = [self._text(part, number) for part in parts[::2]]
            fenced["content"] = "".join(parts)
        return fenced

    def value(self, value: Any, number: int, *, names: bool = False) -> Any:
        """Any plain data with its texts between marks.

        Fields are not renamed, for the template asks for them by name; but what names the
        arguments of a call and the parameters of a tool is text from outside like any other.
        """
        if isinstance(value, str):
            return self._text(value, number)
        if isinstance(value, list):
            return [self.value(item, number, names=names) for item in value]
        if isinstance(value, dict):
            return dict(self._item(*item, number, names) for item in value.items())
        return value

    def _item(self, key: str, item: Any, number: int, names: bool) -> tuple[str, Any]:
        if names:
            marked = self._text(key, number)
        elif key in _UNMARKED and isinstance(item, str):
            self._unmarked |= {key, item}
            return key, item
        else:
            self._unmarked.add(key)
            marked = key
        return marked, self.value(item, number, names=self._names(key, names, number))

    @staticmethod
    def _names(field: str, inherited: bool, number: int) -> bool:
        """Whether the objects right under a field have names from outside."""
        return (field == "properties") if number == TOOLS else inherited or field == "arguments"

    def _text(self, text: str, number: int) -> str:
        """White space at the ends stays outside, where a template can trim it."""
        core = text.strip()
        if not core:
            return text
        before, after = text.split(core, 1)
        left, right = self._left, self._right
        return f"{before}{left}{number}{right}{core}{left}{right}{after}"

    def read(self, marked: str) -> Rendered | None:
        """Takes the marks out of a rendered text; None if they are not in order."""
        mark = re.compile(f"{self._left}(-?[0-9]*|[<>]){self._right}")
        pieces, length, last = [], 0, 0
        data, generated = [], []
        inside: tuple[int, int] | None = None  # start and message of the text that is open
        block: int | None = None
        for found in mark.finditer(marked):
            pieces.append(marked[last : found.start()])
            length, last = length + len(pieces[-1]), found.end()
            if found[1] == "<" and block is None:
                block = length
            elif found[1] == ">" and block is not None:
                generated.append((block, length))
                block = None
            elif found[1] == "" and inside is not None:
                data.append(Span(inside[0], length, inside[1]))
                inside = None
            elif found[1] not in ("", "<", ">") and inside is None:
                inside = (length, int(found[1]))
            else:
                return None
        text = "".join([*pieces, marked[last:]])
        whole = inside is None and block is None
        if not whole:
            return None
        return Rendered(text, tuple(data), tuple(generated), frozenset(self._unmarked))


def _setting(file: Path) -> str | None:
    """The template in a `tokenizer_config.json`, if it has one."""
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("chat_template")
        if isinstance(found, list):
            found = {entry["name"]: entry["template"] for entry in found}["default"]
        if found is not None and not isinstance(found, str):
            raise TypeError("it is no text")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file}: its chat_template cannot be read: {error!r}") from None
    return found


def _unused(*texts: str) -> tuple[str, str]:
    """Two characters that no text holds."""
    free = (mark for mark in map(chr, _MARKS) if not any(mark in text for text in texts))
    try:
        return next(free), next(free)
    except StopIteration:
        raise ValueError("the messages hold every character that could mark them") from None


def _strings(value: Any) -> list[str]:
    """All texts in plain data, names of fields included."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for item in value.items() for text in _strings(item)]
    if isinstance(value, Sequence):
        return [text for item in value for text in _strings(item)]
    return []
