"""Schemas of parameters: what a text must be, and what is not understood."""

from __future__ import annotations

import pytest

from zaya_jax.data.chat import SPECIAL_TOKENS
from zaya_jax.data.tokenizer import train_bpe
from zaya_jax.infer.engine import Constraint
from zaya_jax.infer.engine.grammar import Grammars
from zaya_jax.serve.errors import ApiError
from zaya_jax.serve.parameters import Unbound, _open, alternatives, kinds_of
from zaya_jax.serve.tools import check_sizes, grammar_of_calls, value_of

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
        {"type": "string", "pattern": "[" * 100_000},
        {"type": ["string"] * 100_000},
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


def test_a_pattern_is_read_in_time_that_grows_with_its_length(monkeypatch):
    """A search for the end of a class from each of its brackets takes minutes here."""
    monkeypatch.setattr("zaya_jax.serve.parameters.LONGEST_TEXT", 10**6)
    assert not _open("[" * 300_000)
    grammar_of_calls([tool({"type": "string", "pattern": "[" * 300_000})], TAGS, many=False)


@pytest.mark.parametrize("demanded", [[], [f"p{i}" for i in range(50_000)], [{}, ["x"]]])
def test_many_parameters_are_read_in_time_that_grows_with_their_number(monkeypatch, demanded):
    """A search through all rules, or all names, for each of them takes a minute here."""
    monkeypatch.setattr("zaya_jax.serve.tools.STEPS_OF_ALL", 10**6)
    properties = {f"p{i}": {"type": "string", "minLength": 1} for i in range(50_000)}
    parameters = {"type": "object", "properties": properties, "required": demanded}
    grammar = grammar_of_calls([{"function": {"name": "f", "parameters": parameters}}], TAGS, False)
    assert "p0_49999_0[suffix=" in grammar


def test_all_parameters_together_take_so_many_steps_and_no_more(monkeypatch):
    """Each may name what is large, over and over; what is behind the limit is free text."""
    monkeypatch.setattr("zaya_jax.serve.tools.STEPS_OF_ALL", 1000)
    words = [f"word {i}" for i in range(4000)]
    both = [{"$ref": "#/$defs/words"}, {"type": "null"}]
    defs = {"words": {"enum": words}, "no": {"allOf": both}}
    properties = {f"p{i}": {"anyOf": [{"$ref": "#/$defs/no"}] * 3} for i in range(700)}
    parameters = {"type": "object", "properties": properties, "$defs": defs}
    check_sizes({"f": parameters})
    function = {"name": "f", "parameters": parameters}
    grammar_of_calls([{"function": function}], TAGS, many=False)
    small = {f"p{i}": {"enum": ["a"]} for i in range(1001)}
    function = {"name": "f", "parameters": {"properties": small}}
    grammar = grammar_of_calls([{"function": function}], TAGS, many=False)
    assert '"<parameter=p999>" (("a") ' in grammar
    assert '"<parameter=p1000>" text' in grammar


def test_schemas_of_tools_are_bounded():
    deep = {"type": "object"}
    for _ in range(100):
        deep = {"type": "object", "properties": {"p": deep}}
    for schema, says in (
        (deep, "f: parameters: nested more than 64"),
        ({"description": "x" * 2**18}, "characters; expected at most"),
    ):
        with pytest.raises(ApiError, match=says) as error:
            check_sizes({"f": schema})
        assert (error.value.status, error.value.param) == (400, "tools")
