"""Seeds: what is read, what is refused and how it is told, and slips that are planted."""

from __future__ import annotations

import ast
import copy
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.errors import UserError
from zaya_jax.rl.environments import files, generate, mutate, schema, seeds, words
from zaya_jax.rl.environments.seeds import Seed

GOOD = {
    "name": "double",
    "statement": "Double it.",
    "entry": "f",
    "tests": [
        {"input": [1], "output": 2},
        {"input": [{"tuple": [1]}], "output": {"tuple": [1, 1]}},
    ],
    "accepted": ["def f(x): return x * 2"],
}
INT = {"type": "int", "min": 0, "max": 9}


def test_seeds_survive_a_file(tmp_path, few):
    path = tmp_path / "seeds.jsonl"
    assert files.write(few, path) == 3
    assert list(files.read(path)) == few
    path.write_text(path.read_text() + "\n" + path.read_text().splitlines()[0])
    with pytest.raises(UserError, match=r"line 5: there is another seed named 'lists-7-0'"):
        list(files.read(path))
    path.write_text("{")
    with pytest.raises(UserError, match=r"seeds.jsonl, line 1: not JSON"):
        list(files.read(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "name is ''"),
        ({"statement": 3}, "statement is 3"),
        ({"entry": "f g"}, "entry is 'f g'"),
        ({"tests": []}, "tests must be"),
        ({"tests": [{"input": [1]}]}, r"tests\[0\] is"),
        ({"tests": [{"input": 1, "output": 1}]}, r"tests\[0\].input is 1"),
        ({"tests": [{"input": [{"no": 1}], "output": 1}]}, r"tests\[0\]: not an encoded value"),
        ({"accepted": []}, "accepted must have at least 1"),
        ({"accepted": "def f(x): pass"}, "accepted must be a list"),
        ({"rejected": [3]}, "rejected must be a list"),
        ({"schema": [{"type": "integer"}]}, r"schema\[0\].type is 'integer'"),
        ({"schema": [INT]}, r"tests\[1\].input does not fit"),
        ({"schema": INT}, "schema must be a list"),
        ({"validator": "pass"}, "validator is for programs"),
        ({"entry": None}, "input and output must be texts"),
        ({"entry": None, "schema": [INT]}, "schema is for functions"),
        ({"solution": "x"}, "no field 'solution'"),
    ],
)
def test_malformed_seeds_are_refused(change, message):
    with pytest.raises(UserError, match=f"here: .*{message}|here: {message}"):
        Seed.parse(copy.deepcopy(GOOD) | change, "here")


def test_a_seed_must_be_an_object():
    with pytest.raises(UserError, match="a list; a seed is an object"):
        Seed.parse([], "here")


def test_a_seeds_claims_are_tried():
    good = Seed.parse(GOOD, "here")
    assert seeds.mistakes(good) == []
    false = Seed.parse(GOOD | {"accepted": ["def f(x): return x + x", "def f(x): 1 / 0"],
                               "rejected": ["def f(x): return x * 2"]}, "here")  # fmt: skip
    assert seeds.mistakes(false) == [
        "accepted[1] fails tests[0] (failed, None)",
        "rejected[0] passes all tests",
    ]


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"type": "int", "min": 1}, "max is None"),
        ({"type": "int", "min": 1, "max": 0}, "min 1 is above max 0"),
        ({"type": "int", "min": 0, "max": 1.5}, "max is 1.5"),
        ({"type": "int", "min": 0, "max": True}, "max is True"),
        ({"type": "int", "min": 0, "max": 1, "maximum": 3}, "has no 'maximum'; did you mean max"),
        ({"type": "list", "of": INT, "min_length": -1, "max_length": 1}, "at least 0"),
        ({"type": "list", "min_length": 0, "max_length": 1}, r"x.of is None"),
        ({"type": "str", "alphabet": "", "min_length": 0, "max_length": 1}, "alphabet"),
        ({"type": "tuple", "of": INT}, "list of schemas"),
        ({"type": "tuple", "of": [INT, 3]}, r"x.of\[1\] is 3"),
        ({"type": "choice", "of": []}, "list of values"),
        ("int", "a schema is an object"),
    ],
)
def test_malformed_schemas_are_refused(given_, message):
    with pytest.raises(UserError, match=message):
        schema.check(given_, "x")


def ranges(low, high, numbers):
    return st.tuples(numbers, numbers).map(sorted).map(lambda pair: dict(zip((low, high), pair)))  # noqa: B905


lengths = ranges("min_length", "max_length", st.integers(0, 4))
schemata = st.recursive(
    ranges("min", "max", st.integers(-9, 9)).map({"type": "int"}.__or__)
    | ranges("min", "max", st.floats(-9, 9)).map({"type": "float"}.__or__)
    | st.just({"type": "bool"})
    | st.lists(st.integers() | st.text(), min_size=1).map(lambda v: {"type": "choice", "of": v})
    | lengths.map(lambda length: {"type": "str", "alphabet": "aé"} | length),
    lambda inner: (
        st.tuples(inner, lengths).map(lambda p: {"type": "list", "of": p[0]} | p[1])
        | st.lists(inner, max_size=3).map(lambda parts: {"type": "tuple", "of": parts})
    ),
    max_leaves=4,
)


@given(schemata, st.integers(0, 99))
def test_what_is_drawn_is_valid_and_can_be_said(made, seed):
    schema.check(made, "x")
    value = schema.draw(made, np.random.default_rng(seed))
    assert schema.accepts(made, value)
    assert schema.describe(made)
    assert not schema.accepts(made, object)


@pytest.mark.parametrize("value", [True, 3.0, "3", None, 10, -1, [3]])
def test_other_types_and_sizes_are_not_valid(value):
    assert not schema.accepts(INT, value)
    assert not schema.accepts(
        {"type": "list", "of": INT, "min_length": 0, "max_length": 1}, [value]
    )


def test_slips_are_programs_and_differ():
    source = """
def f(xs, k=2):
    best = 0
    while xs and xs[0] < k or not xs:
        best = max(best, xs.pop() + 1)
    return best if best % 2 == 0 else True
"""
    found = list(mutate.mutations(source))
    texts = {ast.unparse(ast.parse(mutation.source)) for mutation in found}
    assert len(texts) == len(found) and ast.unparse(ast.parse(source)) not in texts
    about = {mutation.about for mutation in found}
    assert {"Lt for LtE", "Eq for NotEq", "And for Or", "Or for And", "Add for Sub", "2 for 3",
            "Mod for FloorDiv", "max for min", "0 for 1", "True for False",
            "a condition turned around"} <= about  # fmt: skip
    assert next(m for m in found if m.about == "Lt for LtE").line == 4
    with pytest.raises(SyntaxError):
        list(mutate.mutations("def f(:"))


def test_generated_seeds_are_what_they_say_and_come_again(few):
    for seed in few:
        assert seeds.mistakes(seed) == []
        assert seed.rejected and len(seed.tests) == generate.TESTS
        assert Seed.parse(json.loads(json.dumps(seed.record())), "x") == seed
    assert [seed.entry for seed in few] == ["solve", "solve", None]
    assert next(generate.seeds(1, seed=7)) == few[0]
    assert next(generate.seeds(1, seed=8)) != few[0]


@given(st.lists(st.integers() | st.text() | st.lists(st.none() | st.booleans()), max_size=4))
def test_arguments_are_read_as_they_are_shown(values):
    shown = ", ".join(map(repr, values)) if values else ""
    if values:
        assert words.arguments(shown, len(values)) == values
    with pytest.raises(words.Unreadable):
        words.arguments(shown, len(values) + 1)
