"""Tool calls in ZAYA's XML format: read as they are written, and bound to the tools' schemas.

    <zyphra_tool_call><function=NAME><parameter=KEY>VALUE</parameter>...</function></zyphra_tool_call>

A value is the text as it is, or JSON for everything else. Which of the two it is the schema says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

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
        properties = _object(self._schemas.get(self.name, {}).get("properties"))
        before = ", " if self._begun else "{"
        self._begun = True
        typed = value_of(value, _object(properties.get(key)))
        return f"{before}{json.dumps(key)}: {json.dumps(typed, ensure_ascii=False)}"

    def _end(self) -> str:
        if self._ended:
            return ""
        self._ended = True
        return "}" if self._begun else "{}"


def value_of(text: str, schema: Schema) -> Any:
    """What a parameter's text says, by its schema: text, or the value of its JSON.

    Text that is no JSON, or JSON of a type that the schema does not have, is text.
    """
    kinds = kinds_of(schema)
    if kinds == {"string"}:
        return text
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text
    kind = kind_of(value)
    if kind == "string":  # a text with quotation marks around it is just that
        return text
    fits = kinds is None or kind in kinds or (kind == "integer" and "number" in kinds)
    return value if fits else text


def kinds_of(schema: Schema) -> set[str] | None:
    """The JSON types that a schema names; None if it does not say."""
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind}
    if isinstance(kind, Sequence):
        return {k for k in kind if isinstance(k, str)}
    if isinstance(values := schema.get("enum"), Sequence) and not isinstance(values, str):
        return {kind_of(value) for value in values}
    for name in ("anyOf", "oneOf"):
        if isinstance(branches := schema.get(name), Sequence) and not isinstance(branches, str):
            found = [kinds_of(_object(branch)) for branch in branches]
            if any(kinds is None for kinds in found):
                return None
            return {kind for kinds in found for kind in kinds or ()}
    return None


def kind_of(value: Any) -> str:
    """The JSON type of a value."""
    if isinstance(value, bool):
        return "boolean"
    names = {dict: "object", list: "array", str: "string", int: "integer", float: "number"}
    return names.get(type(value), "null")


def grammar_of_calls(tools: Sequence[Mapping[str, Any]], tags: tuple[int, int], many: bool) -> str:
    """Rules of a Lark grammar: `calls` is one call of one of these functions, or several.

    Parameters come in the schema's order; the required ones must come. Texts end at the closing
    tag; everything else is bound to its schema.

    Args:
      tools: `{function: {name, parameters}}`.
      tags: ids of the tags around a call.
      many: whether there may be several.
    """
    rules = []
    for number, tool in enumerate(tools):
        function = tool["function"]
        parameters = _object(function.get("parameters"))
        required = parameters.get("required")
        required = required if isinstance(required, list) else []
        parts = []
        for place, (key, schema) in enumerate(_object(parameters.get("properties")).items()):
            rule = f"p{number}_{place}"
            begin = json.dumps(f"<parameter={key}>")
            part = f"{begin} {rule}"
            parts.append(part if key in required else f"({part})?")
            rules += _value_rules(rule, _object(schema), parameters)
        begin, end = json.dumps(f"<function={function['name']}>"), json.dumps("</function>")
        rules.append(f"f{number}: {' '.join([begin, *parts, end])}")
    names = " | ".join(f"f{number}" for number in range(len(tools)))
    rules.append(f"call: <[{tags[0]}]> ({names}) <[{tags[1]}]>")
    rules.append("calls: call+" if many else "calls: call")
    return "\n".join(rules)


def _value_rules(rule: str, schema: Schema, parameters: Schema) -> list[str]:
    """Rules for a value and the tag that closes it."""
    close = json.dumps(_CLOSE)
    values = schema.get("enum")
    if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
        return [f"{rule}: ({' | '.join(json.dumps(value) for value in values)}) {close}"]
    kinds = kinds_of(schema)
    if kinds is None or "string" in kinds:
        return [f"{rule}[suffix={close}]: /(?s:.*)/"]
    whole = {**schema, **{k: parameters[k] for k in ("$defs", "definitions") if k in parameters}}
    return [f"{rule}: {rule}_json {close}", f"{rule}_json: %json {json.dumps(whole)}"]


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
