"""A constraint that ends its compiler ends a process that is there for it."""

from __future__ import annotations

import json
import pickle

import pytest

pytest.importorskip("llguidance")

from zaya_jax.answers.workers import Workers
from zaya_jax.grammar.builder import Vocabulary
from zaya_jax.grammar.trial import Greedy, attempt

BYTES = Vocabulary([bytes([i]) for i in range(256)] + [b"ab", b"\xff<eos>"], [257], None, [257])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("trial") / "vocabulary"
    path.write_bytes(pickle.dumps(BYTES))
    return str(path)


def test_what_compiles_says_nothing_and_what_does_not_says_why(file):
    assert attempt((file, "regex", "(ab)+")) is None
    assert attempt((file, "json_schema", '{"enum": ["ab", 7]}')) is None
    assert "unclosed group" in attempt((file, "regex", "(a"))
    assert "objec" in attempt((file, "json_schema", '{"type": "objec"}'))
    ends = "".join(f"a{i}: /[a-z]{{{i + 1}}}/\n" for i in range(9))
    many = "start: " + " | ".join(f'"x" a{i % 9} "{i}"' for i in range(2100)) + "\n" + ends
    assert "2100 items" in attempt((file, "lark", many))  # only behind the x, which must come


def test_a_stack_that_overflows_and_a_time_that_is_up_are_told(file):
    links = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}]} for i in range(3000)}
    deep = {"$ref": "#/$defs/a0", "$defs": links | {"a3000": {"type": "string"}}}
    with Workers("zaya_jax.grammar.trial:attempt", processes=1, seconds=60) as workers:
        first = workers.map([(file, "json_schema", json.dumps(deep))])[0]
        assert first.failure == "died"
        assert workers.map([(file, "regex", "a")])[0].failure is None


def test_the_longest_tokens_come_first():
    assert Greedy(BYTES.tokens)("xabé") == [ord("x"), 256, *"é".encode()]
