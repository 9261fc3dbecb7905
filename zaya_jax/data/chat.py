"""Conversations as token ids: ChatML, thinking, tool calls, and loss on what the model says.

Each control token is one id and comes from the template only. What a message says is encoded as
the text it is, `<|im_start|>` and all, so that nobody can forge a turn. The exception is meant:
think tags in an assistant's content are control tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from zaya_jax.data.chat_template import ChatTemplate, Rendered
from zaya_jax.data.example import Example, Think
from zaya_jax.data.messages import THINK, THINK_TAG, parse, parse_tools
from zaya_jax.data.tokenizer import Tokenizer
from zaya_jax.errors import UserError

__all__ = [
    "SPECIAL_TOKENS",
    "THINK",
    "ChatTemplate",
    "Example",
    "Think",
    "check_tokenizer",
    "encode",
    "prompt",
    "render",
]

TOOL_TAGS = (
    "<zyphra_tool_call>",
    "</zyphra_tool_call>",
    "<zyphra_tool_response>",
    "</zyphra_tool_response>",
)
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", *THINK, *TOOL_TAGS)
"""The control tokens of our ChatML: for `train_bpe(..., special_tokens=SPECIAL_TOKENS)`."""


def encode(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    enable_thinking: bool | None = None,
) -> Example:
    """A conversation to be learnt from.

    The ids are those of transformers' `apply_chat_template`, unless a message holds the name of a
    control token. Learnt is what a model has to produce after the generation prompt:

    - A template with `{% generation %}` blocks says it itself.
    - Any other: from the end of the header that its generation prompt writes, to the special tokens
      that end a turn, included. Whether the template drops thinking from earlier
      turns does not matter. A template whose generation prompt opens the think block gives that
      tag; it is not learnt.

    Args:
        messages: see `messages.parse`.
        tokenizer: with all control tokens of the template.
        template: see `ChatTemplate.find`.
        tools: descriptions of tools that the template shows to the model.
        enable_thinking: passed to the template; None leaves it to its default.

    Raises:
        UserError: the tokenizer lacks control tokens; the message names them all.
        ValueError: malformed messages (names the path), none of the assistant's, or a template
            that refuses them or does not show which text is whose.
    """
    chat = parse(messages)
    speakers = [i for i, message in enumerate(chat) if message["role"] == "assistant"]
    if not speakers:
        raise ValueError("messages have no assistant turn: there is nothing to learn")
    variables = _variables(tokenizer, enable_thinking)
    text, tokens = _tokenise(chat, tokenizer, template, tools, variables)
    if template.marks_generation:
        turns = _turns_of_blocks(text, speakers, template)
    else:
        turns = _turns_of_headers(text, speakers, template, tokenizer, variables)

    learn = np.zeros(tokens.ids.size, bool)
    for spans in turns:
        for start, stop in spans:
            # A token may begin before the span, if the vocabulary joins the two sides of a border.
            learn |= (tokens.starts < stop) & ((tokens.stops > start) | (tokens.starts >= start))
    thinks = _thinks(tokens, turns, tokenizer)
    return Example(tokens.ids, learn, thinks, len(speakers))


def prompt(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    enable_thinking: bool | None = None,
    lenient: bool = False,
) -> list[int]:
    """Token ids after which the model is to answer: for inference. Arguments as of `encode`, and of
    `parse`."""
    variables = _variables(tokenizer, enable_thinking) | {"add_generation_prompt": True}
    chat = parse(messages, lenient=lenient)
    return _tokenise(chat, tokenizer, template, tools, variables)[1].ids.tolist()


def render(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    enable_thinking: bool | None = None,
    add_generation_prompt: bool = False,
) -> str:
    """A conversation as text, for people: in it control tokens and text can look alike."""
    variables = _variables(tokenizer, enable_thinking)
    variables["add_generation_prompt"] = add_generation_prompt
    return template.conversation(parse(messages), parse_tools(tools), **variables)


def check_tokenizer(tokenizer: Tokenizer, template: ChatTemplate, also: Iterable[str] = ()) -> None:
    """Checks that every control token of a template is one token.

    Args:
        tokenizer: the tokenizer.
        template: the template.
        also: more names that must be there.

    Raises:
        UserError: names all that are missing.
    """
    wanted = dict.fromkeys([*template.controls, *also])
    if missing := [token for token in wanted if tokenizer.id_of(token) is None]:
        raise UserError(
            f"the tokenizer lacks special tokens of {template.name}: {', '.join(missing)}; train "
            f"one with them, or choose the tokenizer or the chat template that fits the other"
        )


class _Tokens(NamedTuple):
    """Tokens and the characters that they cover, arrays [n].

    Attributes:
        ids: int32.
        starts: int64, first character.
        stops: int64, the one after the last.
        control: bool, whether the template wrote it as a control token.
    """

    ids: np.ndarray
    starts: np.ndarray
    stops: np.ndarray
    control: np.ndarray


def _variables(tokenizer: Tokenizer, enable_thinking: bool | None) -> dict[str, Any]:
    """What a template reads besides the conversation."""
    roles = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    variables: dict[str, Any] = {
        f"{role}_token": tokenizer.name_of(i) for role, i in roles.items() if i is not None
    }
    if enable_thinking is not None:
        variables["enable_thinking"] = enable_thinking
    return variables


def _tokenise(
    chat: list[dict[str, Any]],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    tools: Any,
    variables: dict[str, Any],
) -> tuple[Rendered, _Tokens]:
    """Renders and encodes messages that were parsed."""
    tagged = any(
        message["role"] == "assistant" and THINK_TAG.search(message["content"]) for message in chat
    )
    check_tokenizer(tokenizer, template, THINK if tagged else ())
    controls, pattern = _controls(tokenizer)
    rendered = template.trace(chat, parse_tools(tools), **variables)
    for text in rendered.unmarked:
        if found := pattern.search(text):
            raise ValueError(f"the field or type {text!r} holds the control token {found[0]}")

    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    control: list[bool] = []

    def add_text(start: int, stop: int) -> None:
        new, places = _encode_text(rendered.text[start:stop], tokenizer, controls, pattern)
        ids.extend(new)
        offsets.extend((start + a, start + b) for a, b in places)
        control.extend([False] * len(new))

    place = 0
    for start, stop in _control_places(rendered, pattern):
        add_text(place, start)
        ids.append(controls[rendered.text[start:stop].strip()])
        offsets.append((start, stop))
        control.append(True)
        place = stop
    add_text(place, len(rendered.text))
    borders = np.array(offsets, np.int64).reshape(-1, 2)
    return rendered, _Tokens(
        np.array(ids, np.int32), borders[:, 0], borders[:, 1], np.array(control, bool)
    )


@lru_cache(maxsize=4)
def _controls(tokenizer: Tokenizer) -> tuple[dict[str, int], re.Pattern]:
    """Control tokens by name, and a pattern that finds them, the longest first.

    They are the special ones, and those of ours that the vocabulary does not mark as special.
    """
    ours = {name: tokenizer.id_of(name) for name in SPECIAL_TOKENS}
    controls = tokenizer.special_ids | {name: i for name, i in ours.items() if i is not None}
    patterns = []
    for name in sorted(controls, key=len, reverse=True):
        before, after = tokenizer.swallows_space.get(name, (False, False))
        patterns.append(r"\s*" * before + re.escape(name) + r"\s*" * after)
    return controls, re.compile("|".join(patterns) or "(?!)")


def _control_places(rendered: Rendered, pattern: re.Pattern) -> Iterable[tuple[int, int]]:
    """Where the template wrote control tokens: matches that touch no text of a message."""
    data, next_data, place = rendered.data, 0, 0
    while found := pattern.search(rendered.text, place):
        while next_data < len(data) and data[next_data].stop <= found.start():
            next_data += 1
        if next_data < len(data) and data[next_data].start < found.end():
            place = found.start() + 1
        else:
            place = found.end()
            yield found.span()


def _encode_text(
    text: str, tokenizer: Tokenizer, controls: Mapping[str, int], pattern: re.Pattern
) -> tuple[list[int], list[tuple[int, int]]]:
    """Encodes text so that no control token comes out, whatever it says.

    The tokenizer does not find special tokens in text. Tokens that are in its vocabulary without
    being marked as special, as think tags often are, it does: these are encoded in two halves.
    """
    if not text:
        return [], []
    ids, offsets = tokenizer.encode_with_offsets(text)
    if set(controls.values()).isdisjoint(ids):
        return ids, offsets
    cuts = [0, *(found.start() + 1 for found in pattern.finditer(text)), len(text)]
    ids, offsets = [], []
    for start, stop in zip(cuts, cuts[1:], strict=False):
        new, places = tokenizer.encode_with_offsets(text[start:stop])
        ids += new
        offsets += [(start + a, start + b) for a, b in places]
    if not set(controls.values()).isdisjoint(ids):
        raise ValueError(f"text {text[:40]!r} is encoded to control tokens")
    return ids, offsets


Turns = list[list[tuple[int, int]]]
"""For each assistant turn: the character ranges of what is learnt."""


def _turns_of_blocks(text: Rendered, speakers: list[int], template: ChatTemplate) -> Turns:
    """Turns by the template's own blocks: each belongs to the message whose text is in it."""
    if not text.generated:
        raise ValueError(f"{template.name}: no generation block for any assistant turn")
    turns: Turns = [[] for _ in speakers]
    turn = 0
    for start, stop in text.generated:
        inside = [span.message for span in text.data if start <= span.start < stop]
        if inside and inside[0] in speakers:
            turn = speakers.index(inside[0])
        turns[turn].append((start, stop))  # one without any text continues the turn before
    return turns


def _turns_of_headers(
    text: Rendered,
    speakers: list[int],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    variables: dict[str, Any],
) -> Turns:
    """Turns by the header before their text and the special tokens after it."""
    known = tuple(variables.items())
    openings, closing = _openings(template, known), _closing(template, tokenizer, known)
    turns: Turns = []
    for message in speakers:
        own = [span for span in text.data if span.message == message]
        before = max((span.stop for span in text.data if span.message < message), default=0)
        after = min(
            (span.start for span in text.data if span.message > message), default=len(text.text)
        )
        starts = [
            at + len(opening)
            for opening in openings
            if own and (at := text.text.rfind(opening, before, own[0].start)) >= 0
        ]
        stop = text.text.find(closing, own[-1].stop, after) if own and closing else -1
        if not starts or stop < 0:
            raise ValueError(
                f"{template.name} does not show what is learnt of messages[{message}]: no "
                f"{'text of it' if not own else 'header before it' if not starts else 'end of it'}"
                f" was found; put {{% generation %}} blocks into the template"
            )
        turns.append([(starts[0], stop + len(closing))])
    return turns


@lru_cache(maxsize=16)
def _openings(template: ChatTemplate, known: tuple[tuple[str, Any], ...]) -> list[str]:
    """What may stand before a turn's text, the most telling first.

    The header that the generation prompt adds; without one, as in templates that close the user's
    turn with a word to the model, all that follows the user's text. Each also without a think tag
    at its end, for turns that do not think.
    """
    probe, variables = [{"role": "user", "content": "x"}], dict(known)
    without = template.conversation(probe, None, **variables)
    asked = template.trace(probe, None, **variables | {"add_generation_prompt": True})
    header = asked.text.removeprefix(without)
    rest = asked.text[asked.data[-1].stop :] if asked.data else ""
    openings = [header, header.split(THINK[0])[0], rest, rest.split(THINK[0])[0]]
    return [opening for opening in openings if opening]


@lru_cache(maxsize=16)
def _closing(
    template: ChatTemplate, tokenizer: Tokenizer, known: tuple[tuple[str, Any], ...]
) -> str:
    """The special tokens that end a turn: those that follow a plain answer, side by side."""
    probe = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    answered = template.trace(probe, None, **dict(known))
    end = answered.data[-1].stop if answered.data else 0
    places = _control_places(answered, _controls(tokenizer)[1])
    start = stop = None
    for at, until in places:
        if at >= end and start is None:
            start, stop = at, until
        elif at == stop:
            stop = until
    return answered.text[start:stop] if start is not None else ""


def _thinks(tokens: _Tokens, turns: Turns, tokenizer: Tokenizer) -> tuple[Think, ...]:
    """The think blocks that end in an assistant turn.

    A header may have opened one before what is learnt begins. Tags elsewhere, such as in a
    template's own instructions, are none of the model's.
    """
    opening, closing = (tokenizer.id_of(name) for name in THINK)
    if opening is None or closing is None:
        return ()
    ranges = [(start, stop, turn) for turn, spans in enumerate(turns) for start, stop in spans]
    thinks: list[Think] = []
    opened: int | None = None
    for at in np.flatnonzero(tokens.control & np.isin(tokens.ids, [opening, closing])).tolist():
        here = tokens.starts[at]
        turn = next((turn for start, stop, turn in ranges if start <= here < stop), None)
        if tokens.ids[at] == opening:
            if opened is not None and turn is not None:
                raise ValueError(f"unbalanced <think> in assistant turn {turn}: opened twice")
            opened = at
        elif turn is None:
            opened = None
        elif opened is None:
            raise ValueError(f"unbalanced <think> in assistant turn {turn}: closed, never opened")
        else:
            thinks.append(Think(opened + 1, at, turn))
            opened = None
    if opened is not None and any(a <= tokens.starts[opened] < b for a, b, _ in ranges):
        raise ValueError("unbalanced <think> in the last assistant turn: never closed")
    return tuple(thinks)
