"""The messages of a conversation as plain data, checked: every mistake is told with its path."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from zaya_jax.errors import hint

ROLES = ("system", "user", "assistant", "tool")
THINK = ("<think>", "</think>")
THINK_TAG = re.compile("(</?think>)")
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Fields that hold an assistant's thinking; transformers knows the same three."""

_DEEPEST = 64


def parse(messages: Any, *, lenient: bool = False) -> list[dict[str, Any]]:
    """Checks messages and writes them in one way.

    Content that comes as text parts is joined. Thinking, under whichever name, is put under
    `reasoning_content` (and `thinking`, which some templates read). Arguments of tool calls that
    are JSON in a string become the object. Other fields stay as they are.

    Args:
        messages: `{role, content}` each, an assistant's with `reasoning_content` and `tool_calls`
            if it likes. An assistant's content may hold `<think>...</think>` itself.
        lenient: whether assistants' turns may be what a model wrote, for a conversation that goes
            on: one that was cut while it thought, tags that do not match, a tool call whose JSON
            ends after an argument. Training data should have none of these.

    Returns:
        New messages of plain JSON types.

    Raises:
        ValueError: naming the path (`messages[2].content`): not a list of objects, an unknown
            role, content that is no text, an assistant turn with neither answer nor tool call,
            `<think>` without its `</think>` or the reverse, a malformed tool call.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise ValueError(f"messages is {_shown(messages)}; it must be a list of messages")
    return [_message(message, f"messages[{i}]", lenient) for i, message in enumerate(messages)]


def parse_tools(tools: Any) -> list[Any] | None:
    """Descriptions of tools as plain data (JSON schemas, usually); None if there are none."""
    if not tools:
        return None
    if not isinstance(tools, Sequence) or isinstance(tools, str | bytes):
        raise ValueError(f"tools is {_shown(tools)}; it must be a list of descriptions")
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            raise ValueError(f"tools[{i}] is {_shown(tool)}; it must be an object")
    return _plain(list(tools), "tools")


def _message(message: Any, path: str, lenient: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ValueError(f"{path} is {_shown(message)}; it must be an object with role and content")
    message = _plain(message, path)
    role = message.get("role")
    if role not in ROLES:
        raise ValueError(f"{path}.role is {_shown(role)}{hint(str(role), ROLES)}")
    message["content"] = _text(message.get("content"), path + ".content", role)
    if role == "assistant":
        _assistant(message, path, lenient)
    return message


def _text(content: Any, path: str, role: str) -> str:
    if isinstance(content, list):
        for i, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text" or not isinstance(part.get("text"), str):
                raise ValueError(f"{path}[{i}] is {_shown(part)}; accepted: parts of type 'text'")
        content = "".join(part["text"] for part in content)
    if content is None and role == "assistant":
        return ""  # a turn of tool calls only
    if not isinstance(content, str):
        raise ValueError(f"{path} is {_shown(content)}; it must be text")
    return content


def _assistant(message: dict[str, Any], path: str, lenient: bool) -> None:
    """Checks an assistant's message and sets its fields in place."""
    if not lenient:
        _check_balance(message["content"], path + ".content")
    for field in REASONING:
        if (thinking := message.get(field)) is None:
            continue
        if not isinstance(thinking, str):
            raise ValueError(f"{path}.{field} is {_shown(thinking)}; it must be text")
        if (found := THINK_TAG.search(thinking)) and not lenient:
            raise ValueError(f"{path}.{field} holds {found[0]}; it is the inside of the block only")
        if thinking and THINK_TAG.search(message["content"]) and not lenient:
            raise ValueError(
                f"{path} thinks both in {field} and between think tags in content; use one of them"
            )
        message["reasoning_content"] = thinking
        message.setdefault("thinking", thinking)
        break
    calls = message.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, list):
            raise ValueError(f"{path}.tool_calls is {_shown(calls)}; it must be a list")
        for i, call in enumerate(calls):
            _check_call(call, f"{path}.tool_calls[{i}]", lenient)
    if lenient:
        return
    if not calls and not re.sub("<think>.*?</think>", "", message["content"], flags=re.S).strip():
        raise ValueError(
            f"{path} is an empty assistant turn; it needs an answer in content, or tool_calls"
        )


def _check_balance(content: str, path: str) -> None:
    """Think tags come in pairs, one block after the other."""
    opened = None
    for tag in THINK_TAG.finditer(content):
        if (tag[0] == THINK[0]) != (opened is None):
            fault = "closes nothing" if opened is None else "opens a block inside another"
            raise ValueError(
                f"{path}: unbalanced <think>: the {tag[0]} at character {tag.start()} {fault}"
            )
        opened = tag.start() if opened is None else None
    if opened is not None:
        raise ValueError(
            f"{path}: unbalanced <think>: the one at character {opened} is never closed"
        )


def _check_call(call: Any, path: str, lenient: bool) -> None:
    """Checks a tool call, `{function: {name, arguments}}` or `{name, arguments}`, in place."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"{path} is {_shown(call)}; it must be {{function: {{name, arguments}}}}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _loaded(arguments or "{}", path, lenient)
    if not isinstance(arguments, dict):
        raise ValueError(f"{path}: arguments are {_shown(arguments)}; they must be an object")
    function["arguments"] = _plain(arguments, path + ".arguments")


def _loaded(arguments: str, path: str, lenient: bool) -> Any:
    """Arguments in a string; of a call that was cut, those that were whole."""
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError) as error:
        if lenient:
            try:
                return json.loads(arguments + "}")
            except (ValueError, RecursionError):
                pass
        raise ValueError(f"{path}: arguments are not JSON: {error}") from None


def _plain(value: Any, path: str, depth: int = 0) -> Any:
    """A copy of plain JSON types: a template is foreign code and gets no live objects."""
    if depth > _DEEPEST:
        raise ValueError(f"{path} is nested more than {_DEEPEST} deep")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{path} is no Unicode text: {error.reason}") from None
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        copy = {}
        for key, item in value.items():
            name = _plain(str(key), path, depth)
            copy[name] = _plain(item, f"{path}.{name}", depth + 1)
        return copy
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_plain(item, f"{path}[{i}]", depth + 1) for i, item in enumerate(value)]
    raise ValueError(f"{path} is {_shown(value)}; accepted: what JSON can hold")


def _shown(value: Any) -> str:
    """A value in a message, short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
