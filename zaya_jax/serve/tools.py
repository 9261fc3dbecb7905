"""Tool calls in ZAYA's XML format: read as they are written, and bound to the tools' schemas.

    <zyphra_tool_call><function=NAME><parameter=KEY>VALUE</parameter>...</function></zyphra_tool_call>

A value is the text as it is, or JSON for everything else. Which of the two it is the schema says.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from zaya_jax.errors import UserError
from zaya_jax.grammar import bounds
from zaya_jax.serve.errors import ApiError
from zaya_jax.serve.parameters import (
    STEPS_OF_ALL,
    Effort,
    Schema,
    Unbound,
    check,
    check_name,
    free,
    grammar_of,
    kind_of,
    kinds_of,
    properties_of,
)  # fmt: skip
from zaya_jax.serve.streams import dumps

_FUNCTION = re.compile(r"<function=([^<>]*)>")
_NEXT = re.compile(r"<parameter=([^<>]*)>|</function>")
_CLOSE = "</parameter>"


class Call:
    """A call as it is written.

    Attributes:
      name: of the function, once it is known.
      text: all that was written of it.
    """

    def __init__(self, schemas: Mapping[str, Schema]):
        """Args: schemas: of the functions' parameters, by the functions' names."""
        self._schemas = schemas
        self.name: str | None = None
        self.text = ""
        self._rest = ""
        self._key: str | None = None
        self._begun = self._ended = False

    def push(self, text: str) -> str:
        """Takes more of the text; returns what became certain of the arguments' JSON."""
        self.text += text
        self._rest += text
        out = ""
        while (more := self._step()) is not None:
            out += more
        return out

    def close(self) -> str:
        """The end of the call's text: the rest of the JSON. Nothing if there is no function."""
        return "" if self.name is None else self._end()

    def _step(self) -> str | None:
        """Reads one piece of the structure; None if it is not there yet."""
        if self._ended:
            return None
        if self.name is None:
            if (found := _FUNCTION.search(self._rest)) is None:
                return None
            self.name, self._rest = found[1].strip(), self._rest[found.end() :]
            return ""
        if self._key is None:
            if (found := _NEXT.search(self._rest)) is None:
                return None
            self._key, self._rest = found[1], self._rest[found.end() :]
            return self._end() if self._key is None else ""
        value, closed, rest = self._rest.partition(_CLOSE)
        if not closed:
            return None
        key, self._key, self._rest = self._key, None, rest
        parameters = self._schemas.get(self.name, {})
        before = ", " if self._begun else "{"
        self._begun = True
        typed = value_of(value, properties_of(parameters).get(key, {}), parameters)
        return f"{before}{json.dumps(key)}: {dumps(typed).decode()}"

    def _end(self) -> str:
        if self._ended:
            return ""
        self._ended = True
        return "}" if self._begun else "{}"


def value_of(text: str, schema: Any, root: Schema | None = None) -> Any:
    """What a parameter's text says, by its schema: text, or the value of its JSON.

    Text that is no JSON, or JSON of a type that the schema does not have, is text. root: where the
    schema's references begin.
    """
    kinds = kinds_of(schema, root)
    if kinds == {"string"}:
        return text
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return text
    kind = kind_of(value)
    if kind == "string":  # a text with quotation marks around it is just that
        return text
    fits = kinds is None or kind in kinds or (kind == "integer" and "number" in kinds)
    return value if fits else text


def check_sizes(schemas: Mapping[str, Schema]) -> None:
    """Raises ApiError for parameters whose schema is too large to be taken apart.

    Args: schemas: of the functions' parameters, by the functions' names.
    """
    for name, parameters in schemas.items():
        try:
            bounds.check_schema(parameters)
            bounds.check_length(json.dumps(parameters))
        except UserError as error:
            raise ApiError(400, f"tools: {name}: parameters: {error}", param="tools") from error


def grammar_of_calls(tools: Sequence[Mapping[str, Any]], tags: tuple[int, int], many: bool) -> str:
    """Rules of a Lark grammar: `calls` is one call of one of these functions, or several.

    Parameters come in the schema's order; the required ones must come. Each is bound to its schema;
    one whose schema is `Unbound` is any text, up to the closing tag.

    Args:
      tools: `{function: {name, parameters, strict}}`, their sizes checked.
      tags: ids of the tags around a call.
      many: whether there may be several.

    Raises:
      ApiError: a strict tool with a schema that cannot be bound.
    """
    rules: dict[str, None] = {}  # a set in order: some parameters need the same ones
    effort = Effort(STEPS_OF_ALL)
    for number, tool in enumerate(tools):
        function = tool["function"]
        parts, more = _parts(f"p{number}", function, effort)
        rules |= dict.fromkeys(more)
        begin, end = json.dumps(f"<function={function['name']}>"), json.dumps("</function>")
        rules[f"f{number}: {' '.join([begin, *parts, end])}"] = None
    names = " | ".join(f"f{number}" for number in range(len(tools)))
    rules[f"call: <[{tags[0]}]> ({names}) <[{tags[1]}]>"] = None
    rules["calls: call+" if many else "calls: call"] = None
    return "\n".join(rules)


def _parts(
    prefix: str, function: Mapping[str, Any], effort: Effort
) -> tuple[list[str], list[str]]:
    """Expressions for a function's parameters, and the rules that they need, whose names begin with
    `prefix`."""
    parameters = function.get("parameters") or {}
    required = parameters.get("required")
    needed = {name for name in required if isinstance(name, str)} if type(required) is list else ()
    parts, rules = [], []
    try:
        check(parameters)
    except Unbound as error:
        _unless_strict(function, "parameters", error)
    for place, (key, schema) in enumerate(properties_of(parameters).items()):
        try:
            check_name(key)
            value, more = grammar_of(f"{prefix}_{place}", schema, parameters, _CLOSE, effort)
        except Unbound as error:
            _unless_strict(function, f"parameter {key!r}", error)
            value, more = free(_CLOSE)
        rules += more
        part = f"{json.dumps(f'<parameter={key}>')} {value}"
        parts.append(part if key in needed else f"({part})?")
    return parts, rules


def _unless_strict(function: Mapping[str, Any], what: str, error: Unbound) -> None:
    """Raises ApiError if the tool is to be kept to strictly."""
    if function.get("strict"):
        raise ApiError(
            400,
            f"tools: {function['name']}: {what} cannot be bound: {error}; simplify its schema, or "
            "leave strict out",
            param="tools",
        )


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is more than a number can be")
    return value
