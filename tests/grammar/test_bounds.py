"""What is too large for a compiler that descends by recursion, and what is not."""

from __future__ import annotations

import json

import pytest

from zaya_jax.errors import UserError
from zaya_jax.grammar import bounds


def chain(length: int, depth: int = 1) -> dict:
    """Definitions each of which is the next, within so many levels."""

    def wrapped(value):
        for _ in range(depth):
            value = {"allOf": [value]}
        return value

    links = {f"a{i}": wrapped({"$ref": f"#/$defs/a{i + 1}"}) for i in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": links | {f"a{length}": {"type": "string"}}}


def nested(depth: int, key: str = "items"):
    value: dict = {"type": "integer"}
    for _ in range(depth):
        value = {key: value}
    return value


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (chain(1500), "more than 256 places"),
        (chain(200, depth=20), "levels in all"),
        (nested(100), "nested more than 64"),
        (nested(3000), "nested more than 64"),
        ({"anyOf": [{"const": i} for i in range(20_000)]}, "more than 20,000 values"),
        ({"$ref": "#/$defs/x/y", "$defs": nested(40)} | {f"k{i}": {"$ref": f"urn:{i}"}
         for i in range(60)}, "levels in all"),  # what they name is not here: the whole counts
    ],
)  # fmt: skip
def test_a_schema_that_is_too_large_is_refused(schema, says):
    with pytest.raises(UserError, match=says):
        bounds.check_schema(schema)


def test_schemas_as_people_write_them_pass():
    item = {"type": "object", "properties": {"next": {"$ref": "#/$defs/item"},
                                             "name": {"type": "string"}}}  # fmt: skip
    items = {"$ref": "#/$defs/item"}
    bounds.check_schema({"type": "array", "items": items, "$defs": {"item": item}})
    flat = {f"d{i}": {"type": "object", "properties": {"x": {"type": "number"}}}
            for i in range(150)}  # fmt: skip
    schema = {"anyOf": [{"$ref": f"#/$defs/{name}"} for name in flat], "$defs": flat}
    bounds.check_schema(schema)
    bounds.check_schema({"$ref": "#"})


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        ("start: T0\n" + "".join(f'T{i}: T{i + 1} "x"\n' for i in range(4000)), "4,001 rules"),
        ("start: T0\n" + "".join(f'T{i}: T{i + 1} "x"\n' for i in range(300)), "300 terminals"),
        ("start: " + "(" * 500 + '"x"' + ")" * 500, "nested 500 deep"),
        ("start: /" + "(" * 500 + "x" + ")" * 500 + "/", "nested 500 deep"),
        ("start: %json " + json.dumps(chain(1500)), "places"),
        ("start: %json" + json.dumps(chain(1500)), "places"),
        ('start: "' + "x" * 2**18 + '"', "characters"),
    ],
)
def test_a_grammar_that_is_too_large_is_refused(grammar, says):
    with pytest.raises(UserError, match=says):
        bounds.check_lark(grammar)


@pytest.mark.parametrize("piece", ["a", '"', r"\"", " ", "%json "])
def test_a_grammar_is_read_in_time_that_grows_with_its_length(piece):
    """A pattern that goes back, or begins anew, at each character takes minutes for some."""
    bounds.check_lark('"' + piece * (2**17 // len(piece) - 1))
    bounds.check_lark(piece * (2**17 // len(piece)))


def test_a_schema_is_read_once_however_many_of_its_places_are_named(monkeypatch):
    walk, walked = bounds._walk, []
    monkeypatch.setattr(bounds, "_walk", lambda value: walked.append(value) or walk(value))
    bounds.check_schema({"$defs": {f"a{i}": {"$ref": f"urn:{i}"} for i in range(250)}})
    assert len(walked) == 1


def test_what_is_not_closed_is_no_text_whose_brackets_do_not_count():
    with pytest.raises(UserError, match="nested"):
        bounds.check_lark('start: "' + "(" * 100 + "\nx: " + ")" * 100)
    bounds.check_lark('start: "a" "' + "(" * 100 + '"')


def test_brackets_in_texts_are_no_depth():
    bounds.check_lark("start: " + " ".join('"(((("' for _ in range(100)))
    bounds.check_text(r"\(" * 500)
    with pytest.raises(UserError, match="nested"):
        bounds.check_text("(" * 500 + ")" * 500)
