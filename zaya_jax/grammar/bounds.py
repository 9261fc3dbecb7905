"""How large a constraint may be, checked before it is compiled.

llguidance descends into a schema, a grammar or an expression by recursion, without a limit: a chain
of a few thousand references ends the process. What passes here is a small part of that deep. The
limits leave room for any schema that a person would write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from zaya_jax.errors import UserError

LARGEST = 2**17
"""Characters of a schema, a grammar or an expression."""
DEEPEST = 64
"""Levels of JSON, brackets of a grammar or an expression within each other."""
MOST_VALUES = 20_000
"""Objects, lists and scalars of a schema."""
MOST_REFERRED = 256
"""Places of a schema that a $ref names."""
LONGEST_CHAIN = 1536
"""Levels of all places that a $ref names, two more for each: what a chain of them may descend."""
MOST_RULES = 1024
"""Rules and terminals of a grammar. A tool has one, and up to two for each of its parameters."""
DEEPEST_RULES = 256
"""Terminals that are made of each other, as the longest chain of them descends."""

_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
# Possessive, and what is not closed is a match, too: no text is gone through again and again.
_RULE = re.compile(r"^[ \t]*[?!]?([A-Za-z_][A-Za-z_0-9]*+)[^\n:\"/]*+:", re.MULTILINE)
_LITERAL = re.compile(r'"(?:\\.|[^"\\\n])*+("?)')
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_BRACKETS = re.compile(r"[()\[\]{}]")
_JSON = re.compile(r"%(?:json|llguidance|regex)\b\s*")


def check_schema(schema: Any) -> None:
    """Raises UserError for a JSON schema, given as plain data, that is too large."""
    parts: list[_Part] = []
    referred: dict[str, Any] = {}
    for part in _walk(schema):
        value = part.value
        parts.append(part)
        if len(parts) > MOST_VALUES:
            raise UserError(f"more than {MOST_VALUES:,} values in a schema")
        if part.depth > DEEPEST:
            raise UserError(f"nested more than {DEEPEST} deep")
        if isinstance(value, Mapping):
            for name in _REFERENCES:
                if isinstance(place := value.get(name), str):
                    referred.setdefault(place, _found(schema, place))
        if len(referred) > MOST_REFERRED:
            raise UserError(f"$ref names more than {MOST_REFERRED} places")
    heights = _heights(parts)
    chain = sum(2 + heights[id(place)] for place in referred.values())
    if chain > LONGEST_CHAIN:
        raise UserError(
            f"what $ref names is {chain} levels in all; expected at most {LONGEST_CHAIN}: write "
            "fewer or flatter definitions"
        )


def check_length(text: str) -> None:
    """Raises UserError for a source of too many characters."""
    if len(text) > LARGEST:
        raise UserError(f"{len(text):,} characters; expected at most {LARGEST:,}")


def check_text(text: str) -> None:
    """Raises UserError for an expression that is too large."""
    check_length(text)
    depth = deepest = 0
    for bracket in _BRACKETS.finditer(_ESCAPED.sub("", text)):
        depth = depth + 1 if bracket[0] in "([{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    if deepest > DEEPEST:
        raise UserError(f"brackets are nested {deepest} deep; expected at most {DEEPEST}")


def check_lark(text: str) -> None:
    """Raises UserError for a grammar that is too large, or holds a schema that is."""
    check_length(text)
    rest, at = [], 0
    for found in _JSON.finditer(text):
        if found.start() < at:
            continue
        try:
            schema, end = json.JSONDecoder().raw_decode(text, found.end())
        except (ValueError, RecursionError):
            continue  # read as a part of the grammar
        check_schema(schema)
        rest.append(text[at : found.start()])
        at = end
    plain = _LITERAL.sub(_without_text, "".join([*rest, text[at:]]))
    check_text(plain)
    rules = _RULE.findall(plain)
    if len(rules) > MOST_RULES:
        raise UserError(f"{len(rules):,} rules and terminals; expected at most {MOST_RULES:,}")
    terminals = sum(name.isupper() for name in rules)
    if terminals > DEEPEST_RULES:
        raise UserError(f"{terminals} terminals; expected at most {DEEPEST_RULES}: rules are free")


def _without_text(literal: re.Match[str]) -> str:
    """A literal without what it says; one that is not closed, as it is."""
    return '""' if literal[1] else literal[0]


class _Part(NamedTuple):
    """A value within plain data. depth: 1 is the whole. parent: number of the part it is in."""

    value: Any
    depth: int
    parent: int


def _walk(value: Any) -> Iterator[_Part]:
    """All values of plain data, each after what it is in, without recursion."""
    waiting, number = [_Part(value, 1, -1)], 0
    while waiting:
        part = waiting.pop()
        yield part
        one = part.value
        if isinstance(one, Mapping):
            waiting += [_Part(inner, part.depth + 1, number) for inner in one.values()]
        elif isinstance(one, Sequence) and not isinstance(one, str | bytes):
            waiting += [_Part(inner, part.depth + 1, number) for inner in one]
        number += 1


def _heights(parts: Sequence[_Part]) -> dict[int, int]:
    """Levels of each value with what is in it, by its `id`."""
    heights = [1] * len(parts)
    for number in range(len(parts) - 1, 0, -1):
        parent = parts[number].parent
        heights[parent] = max(heights[parent], heights[number] + 1)
    return {id(part.value): height for part, height in zip(parts, heights, strict=True)}


def _found(schema: Any, place: str) -> Any:
    """What a `$ref` to this schema names; the schema itself if that is not plain to see, which
    makes its whole depth count."""
    if not place.startswith("#"):
        return schema
    value = schema
    for step in place[1:].split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(value, Mapping) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return schema
    return value
