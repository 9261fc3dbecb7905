"""What a parameter of a tool may be, by its JSON schema: text as it is, or JSON.

A schema is taken apart into alternatives: references are followed, `allOf` is merged, `anyOf` and
`oneOf` are branches. Each alternative says of which JSON types its values are, and what it demands
of a text. What it demands of other values is llguidance's to know, which reads the schema itself.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

Schema = Mapping[str, Any]

KINDS = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
MOST, STEPS = 64, 256
"""Alternatives of a schema, and the schemas in it that are looked at for them."""
STEPS_OF_ALL = 2**13
"""The same for all parameters of a request: a few seconds, whatever the schemas are."""
STEP_CHARACTERS = 2**12
"""Characters of listed values, references and grammars that count as much as one schema more."""
STEP_KEYWORDS = 64
"""Likewise, keywords of a schema."""
LONGEST_TEXT = 2**12
"""Characters up to which the length of a text is bound, and characters of a pattern."""
_SAYS_NOTHING = frozenset({
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly",
    "$comment", "$id", "$schema", "$defs", "definitions", "$anchor",
})  # fmt: skip
_OF_OTHERS = frozenset({
    "properties", "required", "additionalProperties", "patternProperties", "minProperties",
    "maxProperties", "propertyNames", "dependentRequired", "items", "prefixItems", "minItems",
    "maxItems", "uniqueItems", "contains", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "multipleOf",
})  # fmt: skip
_OF_TEXT = frozenset({"type", "enum", "const", "minLength", "maxLength", "pattern"})
_OF_PARAMETERS = _SAYS_NOTHING | {"type", "properties", "required", "additionalProperties"}
_SLASH = re.compile(r"\\.|/", re.DOTALL)
# One of a class: without its end it is a match, too, or each bracket would look for one anew.
_CLASS = r"\[(?:\\.|[^\]\\])*+\]?"
_ANCHOR = re.compile(rf"\\.|{_CLASS}|[\^$|]", re.DOTALL)
_BRANCH = re.compile(rf"\\.|{_CLASS}|[()|]", re.DOTALL)


class Unbound(ValueError):
    """A schema that is not understood here; the message says what of it."""


class Effort:
    """Steps that may still be taken for schemas. A small one can name itself again and again."""

    def __init__(self, steps: int = STEPS, of: Effort | None = None):
        """Args: of: a larger one, of which this is a part."""
        self._left, self._of = steps, of

    def spend(self, steps: int = 0, *, characters: int = 0) -> None:
        """Raises Unbound if there are no such steps left."""
        steps += characters // STEP_CHARACTERS
        if self._of is not None:
            self._of.spend(steps)
        self._left -= steps
        if self._left < 0:
            raise Unbound("references that come back to themselves, or too many parts")


@dataclasses.dataclass(frozen=True)
class Alternative:
    """One form of a value.

    kinds: its JSON types. values: it is one of these, if any are listed. pattern: that a text must
      hold. least, most: characters of a text. more: what else is demanded of a text. size:
      characters of the values, at most.
    """

    kinds: frozenset[str]
    values: tuple[Any, ...] | None = None
    pattern: str | None = None
    least: int = 0
    most: int | None = None
    more: frozenset[str] = frozenset()
    size: int = 0

    @property
    def free(self) -> bool:
        """Whether any text will do."""
        return "string" in self.kinds and self == Alternative(self.kinds)

    def and_(self, other: Alternative) -> Alternative | None:
        """What is both; None if nothing is.

        Raises:
          Unbound: two patterns.
        """
        both = self.kinds & other.kinds
        for one, two in ((self, other), (other, self)):
            if "number" in one.kinds and "integer" in two.kinds:
                both |= {"integer"}
        values = self.values
        if other.values is not None:
            values = other.values if values is None else _common(values, other.values)
        if values is not None:
            values = tuple(value for value in values if _is(value, both))
            both = frozenset(kind_of(value) for value in values)
        if not both or values == ():
            return None
        if self.pattern is not None and other.pattern not in (None, self.pattern):
            raise Unbound("two patterns")
        mosts = [most for most in (self.most, other.most) if most is not None]
        return Alternative(
            both,
            values,
            self.pattern if other.pattern is None else other.pattern,
            max(self.least, other.least),
            min(mosts, default=None),
            self.more | other.more,
            max(self.size, other.size),
        )


def alternatives(schema: Any, root: Schema, effort: Effort | None = None) -> list[Alternative]:
    """The forms of a value.

    Args:
      root: where `#` in the schema's references begins.
      effort: that it may take; is spent.

    Raises:
      Unbound: it cannot be taken apart.
    """
    effort = Effort() if effort is None else effort
    effort.spend(1)
    if schema is True:
        return [Alternative(KINDS)]
    if not isinstance(schema, Mapping):
        raise Unbound(f"{json.dumps(schema)[:40]} in place of a schema")
    effort.spend(len(schema) // STEP_KEYWORDS)
    rest = {key: value for key, value in schema.items() if key not in _SAYS_NOTHING}
    groups: list[list[Alternative]] = []
    if "$ref" in rest:
        place = rest.pop("$ref")
        effort.spend(characters=len(place) if isinstance(place, str) else 0)
        groups.append(alternatives(_named(place, root), root, effort))
    for part in _list(rest.pop("allOf", []), "allOf"):
        groups.append(alternatives(part, root, effort))
    for name in ("anyOf", "oneOf"):
        if name in rest:
            branches = _list(rest.pop(name), name)
            groups.append([a for b in branches for a in alternatives(b, root, effort)])
    found = [_plain(rest)]
    effort.spend(characters=found[0].size)
    for group in groups:
        if len(found) * len(group) > MOST:
            raise Unbound(f"more than {MOST} alternatives")
        effort.spend(characters=sum(one.size + two.size for one in found for two in group))
        both = (one.and_(two) for one in found for two in group)
        found = [one for one in both if one is not None]
    return found


def kinds_of(schema: Any, root: Schema | None = None) -> set[str] | None:
    """The JSON types that a schema names; None if it does not say."""
    try:
        found = alternatives(schema, root or {})
    except Unbound:
        return None
    kinds = frozenset().union(*(one.kinds for one in found)) if found else frozenset()
    return None if kinds == KINDS or not kinds else set(kinds - _implied(kinds))


def kind_of(value: Any) -> str:
    """The JSON type of a value."""
    if isinstance(value, bool):
        return "boolean"
    names = {dict: "object", list: "array", str: "string", int: "integer", float: "number"}
    return names.get(type(value), "null")


def grammar_of(
    name: str, schema: Any, root: Schema, close: str, effort: Effort
) -> tuple[str, list[str]]:
    """A Lark expression for a value and the tag that closes it, and the rules that it needs, whose
    names begin with `name`.

    Args: effort: of all parameters; is spent.

    Raises:
      Unbound: a demand on a text that these cannot express.
    """
    end = json.dumps(close)
    effort = Effort(of=effort)
    found = alternatives(schema, root, effort)
    texts = [one for one in found if "string" in one.kinds]
    if any(one.free for one in texts):
        return free(close)
    literals = [v for one in texts for v in one.values or () if isinstance(v, str)]
    if any(close in literal for literal in literals):
        raise Unbound(f"{close} in a value")
    expressions = [_expression(one) for one in texts if one.values is None]
    fixed = [json.dumps(literal) for literal in dict.fromkeys(literals)]
    if others := sorted({kind for one in found for kind in one.kinds} - {"string"}):
        fixed.append(f"%json {_json(schema, others if texts else None, root)}")
    forms, rules = [f"({' | '.join(fixed)}) {end}"] if fixed else [], []
    for number, expression in enumerate(expressions):
        forms.append(f"{name}_{number}")
        rules.append(f"{name}_{number}[suffix={end}]: /{expression}/")
    if not forms:
        raise Unbound("no value fits it")
    effort.spend(characters=sum(map(len, forms + rules)))
    return f"({' | '.join(forms)})", rules


def free(close: str) -> tuple[str, list[str]]:
    """As `grammar_of`, for any text. The rule is the same for all."""
    return "text", [f"text[suffix={json.dumps(close)}]: /(?s:.*)/"]


def _json(schema: Any, kinds: Sequence[str] | None, root: Schema) -> str:
    """A schema on its own, of these kinds only if there are some."""
    whole = dict(schema) if kinds is None else {"allOf": [schema, {"type": list(kinds)}]}
    if "$ref" in json.dumps(schema):
        whole |= {key: root[key] for key in ("$defs", "definitions") if key in root}
    return json.dumps(whole)


def properties_of(parameters: Any) -> dict[str, Any]:
    """The properties of a tool's parameters, by name."""
    properties = _object(parameters).get("properties")
    return dict(_object(properties))


def check(parameters: Any) -> None:
    """Raises Unbound for demands on a call's parameters together that no grammar of ours keeps."""
    unknown = sorted(set(_object(parameters)) - _OF_PARAMETERS)
    if unknown:
        raise Unbound(", ".join(unknown))
    properties = properties_of(parameters)
    required = _object(parameters).get("required") or []
    for name in _list(required, "required"):
        if not isinstance(name, str) or name not in properties:
            raise Unbound(f"required {repr(name)[:60]}, which is no property")


def check_name(name: str) -> None:
    """Raises Unbound for a parameter that cannot be written in a tag."""
    if re.search(r"[<>\n]", name):
        raise Unbound("a name that cannot stand in a tag")


def _plain(schema: Schema) -> Alternative:
    """A schema without references and branches."""
    kinds = KINDS
    if (given := schema.get("type")) is not None:
        names = [given] if isinstance(given, str) else _list(given, "type")
        kinds = frozenset(str(name) for name in names[: len(KINDS)]) & KINDS
        if not kinds or len(names) > len(KINDS):
            raise Unbound(f"type {json.dumps(given)[:40]}")
        kinds |= {"integer"} if "number" in kinds else set()
    values: tuple[Any, ...] | None = None
    if "enum" in schema:
        values = tuple(_list(schema["enum"], "enum"))
    if "const" in schema:
        values = (schema["const"],)
    least, most, pattern = schema.get("minLength"), schema.get("maxLength"), schema.get("pattern")
    for value, kind in ((least, int), (most, int), (pattern, str)):
        if value is not None and type(value) is not kind:
            raise Unbound(f"{json.dumps(value)[:40]} as a limit of a text")
    one = Alternative(
        kinds,
        None,
        pattern,
        max(least or 0, 0),
        most,
        frozenset(schema) - _OF_TEXT - _OF_OTHERS,
    )
    if values is None:
        return one
    listed = Alternative(KINDS, values, size=len(json.dumps(values)))
    return one.and_(listed) or Alternative(frozenset(), (), size=listed.size)


def _expression(one: Alternative) -> str:
    """A regular expression for the texts of an alternative, as Lark has it between slashes.

    Raises:
      Unbound: there is none.
    """
    if one.more:
        raise Unbound(", ".join(sorted(one.more)))
    limits = one.least > 0 or one.most is not None
    if one.pattern is None:
        if max(one.least, one.most or 0) > LONGEST_TEXT:
            raise Unbound(f"a length above {LONGEST_TEXT}")
        return f"(?s:.{{{one.least},{'' if one.most is None else one.most}}})"
    if limits:
        raise Unbound("a pattern and a length")
    pattern = one.pattern
    if len(pattern) > LONGEST_TEXT:
        raise Unbound(f"a pattern of more than {LONGEST_TEXT} characters")
    begins = pattern.startswith("^")
    pattern = pattern[1:] if begins else pattern
    places = [found for found in _ANCHOR.finditer(pattern) if found[0] in ("^", "$", "|")]
    ends = bool(places) and places[-1][0] == "$" and places[-1].end() == len(pattern)
    if ends:
        places, pattern = places[:-1], pattern[:-1]
    anchored = begins or ends
    if any(found[0] != "|" for found in places) or (places and anchored and _open(pattern)):
        raise Unbound("a pattern with ^ or $ inside")
    pattern = _SLASH.sub(lambda found: "\\/" if found[0] == "/" else found[0], pattern)
    pattern = pattern.replace("\n", "\\n")
    before, after = "" if begins else "(?s:.*)", "" if ends else "(?s:.*)"
    return f"{before}(?:{pattern}){after}"


def _open(pattern: str) -> bool:
    """Whether a pattern has branches at its outermost level, of which an anchor is one's own."""
    depth = 0
    for found in _BRANCH.finditer(pattern):
        depth += (found[0] == "(") - (found[0] == ")")
        if found[0] == "|" and depth == 0:
            return True
    return False


def _named(place: Any, root: Schema) -> Any:
    """What a reference names."""
    if not isinstance(place, str) or not place.startswith("#"):
        raise Unbound(f"$ref {json.dumps(place)[:60]}")
    value: Any = root
    for step in place[1:].split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if not isinstance(value, Mapping) or name not in value:
            raise Unbound(f"$ref {json.dumps(place)[:60]}")
        value = value[name]
    return value


def _list(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise Unbound(f"{name} that is no list")
    return value


def _object(value: Any) -> Schema:
    return value if isinstance(value, Mapping) else {}


def _implied(kinds: frozenset[str]) -> set[str]:
    return {"integer"} if "number" in kinds else set()


def _is(value: Any, kinds: frozenset[str]) -> bool:
    return kind_of(value) in kinds


def _common(one: tuple[Any, ...], two: tuple[Any, ...]) -> tuple[Any, ...]:
    """Values of both lists; 1 and true are different ones."""
    written = {json.dumps(value, sort_keys=True) for value in two}
    return tuple(value for value in one if json.dumps(value, sort_keys=True) in written)
