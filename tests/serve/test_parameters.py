"""Schemas of parameters: what a text must be, and what is not understood."""

from __future__ import annotations

import pytest

from zaya_jax.data.chat import SPECIAL_TOKENS
from zaya_jax.data.tokenizer import train_bpe
from zaya_jax.infer.engine import Constraint
from zaya_jax.infer.engine.grammar import Grammars
from zaya_jax.serve.errors import ApiError
from zaya_jax.serve.parameters import Unbound, alternatives, kinds_of
from zaya_jax.serve.tools import grammar_of_calls, value_of

TOKENIZER = train_bpe(["some words"], 300, SPECIAL_TOKENS)
GRAMMARS = Grammars(TOKENIZER, TOKENIZER.vocab_size, frozenset([TOKENIZER.eos_id]))
TAGS = tuple(TOKENIZER.id_of(name) for name in ("<zyphra_tool_call>", "</zyphra_tool_call>"))
DEFS = {
    "colour": {"enum": ["red", "blue"]},
    "pair": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2},
    "loop": {"anyOf": [{"$ref": "#/$defs/loop"}, {"type": "null"}]},
}


def tool(schema, **more):
    parameters = {"type": "object", "properties": {"p": schema}, "required": ["p"], "$defs": DEFS}
    return {"function": {"name": "f", "parameters": parameters} | more}


def fits(schema, text):
    """Whether a call may have this text for its parameter."""
    grammar = "start: calls\n" + grammar_of_calls([tool(schema)], TAGS, many=False)
    matcher = GRAMMARS.matcher(Constraint("lark", grammar))
    inside = TOKENIZER.encode(f"<function=f><parameter=p>{text}</parameter></function>")
    return all(matcher.push(id) for id in [TAGS[0], *inside, TAGS[1]])


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"$ref": "#/$defs/colour"}, ["red", "blue"], ["green", '"red"', "null"]),
        ({"allOf": [{"$ref": "#/$defs/colour"}, {"description": "?"}]}, ["red"], ["green"]),
        ({"anyOf": [{"$ref": "#/$defs/colour"}, {"type": "null"}]}, ["red", "null"], ["nul", "7"]),
        ({"enum": ["red", None]}, ["red", "null"], ["blue"]),
        ({"type": ["string", "null"], "enum": ["red", None]}, ["red", "null"], ["blue"]),
        ({"const": "red"}, ["red"], ["blue", "redd"]),
        ({"const": 3}, ["3"], ["4", '"3"']),
        ({"$ref": "#/$defs/pair"}, ["[true, false]"], ["[true]", "yes"]),
        ({"oneOf": [{"$ref": "#/$defs/pair"}, {"const": "all"}]}, ["all", "[true,true]"], ["[]"]),
        ({"type": "string", "pattern": "^[a-z]{2,3}$"}, ["ab", "abc"], ["a", "abcd", "AB"]),
        ({"type": "string", "pattern": "b/+"}, ["b/", "ab//c"], ["ab"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "<b>"], ["a", "abcd"]),
        ({"type": "string"}, ["", "what <ever>\n"], []),
        ({}, ["", "7", "what ever"], []),
    ],
)
def test_a_call_keeps_to_the_schema_of_its_parameter(schema, good, bad):
    assert [text for text in good if not fits(schema, text)] == []
    assert [text for text in bad if fits(schema, text)] == []


@pytest.mark.parametrize(
    "schema",
    [
        {"not": {"const": "x"}},
        {"type": "string", "format": "date"},
        {"type": "string", "pattern": "^a|b$"},
        {"type": "string", "pattern": "a", "minLength": 3},
        {"type": "string", "maxLength": 10**9},
        {"$ref": "#/$defs/loop"},
        {"$ref": "https://example.org/x"},
        {"enum": ["a</parameter>b"]},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
    ],
)
def test_what_cannot_be_bound_is_free_unless_the_tool_is_strict(schema):
    assert fits(schema, "any text")
    with pytest.raises(ApiError, match="f: parameter 'p' cannot be bound"):
        grammar_of_calls([tool(schema, strict=True)], TAGS, many=False)


def test_parameters_that_hang_together_are_not_bound():
    parameters = {"type": "object", "properties": {}, "required": ["x"]}
    strict = {"function": {"name": "f", "parameters": parameters, "strict": True}}
    with pytest.raises(ApiError, match="parameters cannot be bound: required 'x'"):
        grammar_of_calls([strict], TAGS, many=False)


def test_values_are_read_by_what_a_reference_names():
    root = {"$defs": DEFS}
    assert value_of("5", {"$ref": "#/$defs/colour"}, root) == "5"
    assert value_of("[true, false]", {"$ref": "#/$defs/pair"}, root) == [True, False]
    assert kinds_of({"allOf": [{"type": ["string", "integer"]}, {"type": "number"}]}) == {"integer"}


def test_a_schema_that_doubles_and_doubles_is_given_up():
    schema = {"type": "null"}
    for _ in range(30):
        schema = {"anyOf": [schema, schema]}
    with pytest.raises(Unbound):
        alternatives(schema, {})
    twice = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(40)}
    with pytest.raises(Unbound):
        alternatives({"$ref": "#/$defs/a0"}, {"$defs": twice | {"a40": {"type": "null"}}})
