"""Tool calls: values by their schema, and grammars whose every text is a call that fits."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zaya_jax.data.chat import SPECIAL_TOKENS
from zaya_jax.data.tokenizer import train_bpe
from zaya_jax.infer.engine import Constraint
from zaya_jax.infer.engine.grammar import Grammars
from zaya_jax.serve.tools import Call, grammar_of_calls, kind_of, value_of

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner,
                                                                max_size=3),
)  # fmt: skip


@given(value=JSON)
def test_json_values_come_back(value):
    assert value_of(json.dumps(value), {"type": kind_of(value)}) == value
    assert value_of(json.dumps(value), {}) == value


@given(text=st.text(max_size=20))
def test_text_stays_text_where_the_schema_says_so(text):
    assert value_of(text, {"type": "string"}) == text
    assert value_of(json.dumps(text), {}) == json.dumps(text)


@pytest.mark.parametrize(
    ("text", "schema", "value"),
    [
        ("5", {"type": "string"}, "5"),
        ("5", {"type": ["string", "null"]}, "5"),
        ("null", {"type": ["string", "null"]}, None),
        ("5", {"type": "number"}, 5),
        ("5", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, 5),
        ("5", {"enum": ["5", "6"]}, "5"),
        ("5", {}, 5),
        ("five", {"type": "integer"}, "five"),  # no JSON: told as it is, for the caller to see
        ("true", {"type": "integer"}, "true"),
        ("NaN", {"type": "number"}, "NaN"),
        ("[" * 5000, {}, "[" * 5000),
        ("1" * 5000, {"type": "integer"}, "1" * 5000),
        ("x", {"type": 7, "enum": 3, "anyOf": "?"}, "x"),
    ],
)
def test_values_of_one_kind_and_schemas_of_another(text, schema, value):
    assert value_of(text, schema) == value


def may_follow(matcher, tokenizer):
    """Ids of the tokens that the grammar allows next."""
    words = np.zeros(-(-tokenizer.vocab_size // 32), np.uint32)
    matcher.allow(words)
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))


def test_every_text_of_the_grammar_is_a_call_that_fits_its_schema():
    tokenizer = train_bpe(["<function=f><parameter=n>12</parameter></function>"], 300,
                          SPECIAL_TOKENS)  # fmt: skip
    parameters = {
        "type": "object",
        "properties": {
            "n": {"type": "integer", "minimum": 0, "maximum": 20},
            "s": {"type": "string"},
            "e": {"enum": ["red", "blue \"x\""]},
            "o": {"$ref": "#/$defs/pair"},
        },
        "$defs": {
            "pair": {
                "type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2,
            }
        },
        "required": ["n", "e"],
        "additionalProperties": False,
    }  # fmt: skip
    # A $ref alone says nothing of its type here: it may be text, so it is left to the model.
    parameters["properties"]["o"]["type"] = "array"
    tools = [
        {"function": {"name": "f", "parameters": parameters}},
        {"function": {"name": "g-1"}},
    ]
    begin, end = (tokenizer.id_of(f"{s}zyphra_tool_call>") for s in ("<", "</"))
    grammar = "start: calls\n" + grammar_of_calls(tools, (begin, end), many=True)
    grammars = Grammars(tokenizer, tokenizer.vocab_size, frozenset([tokenizer.eos_id]))
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(25):
        matcher = grammars.matcher(Constraint("lark", grammar))
        written, planned = [], []
        while tokenizer.eos_id not in (allowed := may_follow(matcher, tokenizer)):
            if not planned and len(allowed) > 50 and rng.random() < 0.3:
                planned = tokenizer.encode("</parameter>")  # a free text has to end some time
            wanted = planned.pop(0) if planned else None
            choice = wanted if wanted in allowed else int(rng.choice(allowed))
            assert matcher.push(choice)
            written.append(choice)
        text = tokenizer.decode(written, keep_special=True)
        for part in text.split("<zyphra_tool_call>")[1:]:
            call = Call({"f": parameters})
            out = "".join(map(call.push, part.partition("</zyphra_tool_call>")[0])) + call.close()
            arguments = json.loads(out)
            seen.add((call.name, *arguments))
            if call.name == "f":
                jsonschema.validate(arguments, parameters)
            else:
                assert (call.name, arguments) == ("g-1", {})
    assert ("g-1",) in seen and ("f", "n", "e") in seen
    assert any("s" in keys for keys in seen) and any("o" in keys for keys in seen)


@settings(max_examples=50)
@given(text=st.text(alphabet="<>/=funcioparmet k\n", max_size=60), cut=st.integers(0, 60))
def test_anything_at_all_is_read_without_a_fault(text, cut):
    whole, pieces = Call({}), Call({})
    first = whole.push(text) + whole.close()
    assert pieces.push(text[:cut]) + pieces.push(text[cut:]) + pieces.close() == first
    if whole.name is not None:
        json.loads(first)
