"""Texts bound to a schema: whatever a sampler picks among the allowed tokens is valid."""

import json
import random
import re

import numpy as np
import pytest

pytest.importorskip("llguidance")

from zaya_jax.errors import UserError  # noqa: E402
from zaya_jax.infer.engine import Constraint  # noqa: E402
from zaya_jax.infer.engine import grammar as engine_grammar  # noqa: E402
from zaya_jax.infer.engine.grammar import Grammars  # noqa: E402

SIZE = 310  # more rows of the embedding than the tokenizer has tokens


@pytest.fixture(scope="module")
def grammars(tokenizer) -> Grammars:
    return Grammars(tokenizer, SIZE, frozenset({tokenizer.eos_id}))


def allowed(matcher) -> list[int]:
    words = np.zeros(-(-SIZE // 32), np.uint32)
    matcher.allow(words)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    return np.flatnonzero(bits).tolist()


def walk(tokenizer, matcher, seed: int, prefer: str = "") -> str:
    """A text of tokens drawn among the allowed ones, up to the end of the text."""
    draw, tokens = random.Random(seed), []
    for _ in range(400):
        ids = allowed(matcher)
        assert ids and all(i < tokenizer.vocab_size for i in ids)
        special = set(tokenizer.special_ids.values()) - {tokenizer.eos_id}
        assert not special & set(ids)
        if tokenizer.eos_id in ids and (len(ids) == 1 or draw.random() < 0.5):
            return tokenizer.decode(tokens)
        short = [i for i in ids if tokenizer.token_bytes[i] in (b'"', b"}", b"]", b",", b":", b"0")]
        pick = draw.choice(short or ids) if draw.random() < 0.7 else draw.choice(ids)
        if pick == tokenizer.eos_id:
            return tokenizer.decode(tokens)
        assert matcher.push(pick)
        tokens.append(pick)
    return ""


@pytest.mark.parametrize("seed", range(6))
def test_every_walk_is_an_object_of_the_schema(tokenizer, grammars, seed):
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    text = walk(tokenizer, grammars.matcher(Constraint("json_schema", schema)), seed)
    value = json.loads(text)
    assert set(value) == {"a", "b"} and isinstance(value["a"], int) and value["b"] in ("x", "y")


def test_regular_expressions_and_grammars_bind_too(tokenizer, grammars):
    text = walk(tokenizer, grammars.matcher(Constraint("regex", "ab+c")), 0)
    assert re.fullmatch("ab+c", text)
    lark = 'start: "yes" | "no"'
    assert walk(tokenizer, grammars.matcher(Constraint("lark", lark)), 1) in ("yes", "no")


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (Constraint("json_schema", {"type": "objec"}), "json_schema: .*objec"),
        (Constraint("json_schema", "{"), "json_schema"),
        (Constraint("regex", "(a"), "regex: .*unclosed group"),
        (Constraint("lark", "start: other"), "lark: .*other"),
        (Constraint("regex", {}), "regex: expected text, got dict"),
        (Constraint("json_schema", {"items": [{}] * 30_000}), "more than 20,000 values"),
        (Constraint("regex", "(" * 900), "nested 900 deep"),
        (Constraint("xml", "<a/>"), "xml: expected json_schema, regex or lark"),
    ],
)
def test_a_constraint_that_is_none_is_refused_in_words(grammars, constraint, message):
    with pytest.raises(UserError, match=message):
        grammars.matcher(constraint)


def test_a_constraint_is_compiled_once_and_its_copies_share_nothing(tokenizer, grammars):
    first = grammars.compile(Constraint("regex", "ab|ac"))
    assert grammars.compile(Constraint("regex", "ab|ac")) is first
    one, two = first.matcher(), grammars.matcher(first)
    (a,), (b,) = tokenizer.encode("a"), tokenizer.encode("b")
    assert one.push(a) and one.push(b) and not two.push(b)
    assert grammars.compile(Constraint("json_schema", {"enum": [1]})) is grammars.compile(
        Constraint("json_schema", '{"enum": [1]}')
    )


def test_what_is_too_much_for_the_library_is_an_error_and_no_end(grammars, monkeypatch):
    ends = "".join(f"a{i}: /[a-z]{{{i + 1}}}/\n" for i in range(9))
    many = "start: " + " | ".join(f'"x" a{i % 9} "{i}"' for i in range(2100)) + "\n" + ends
    with pytest.raises(UserError, match="lark: .*2100 items"):
        grammars.matcher(Constraint("lark", many))
    matcher = grammars.matcher(Constraint("regex", "ab"))
    with monkeypatch.context() as patch:
        patch.setattr(engine_grammar, "GRACE", -1.0)
        with pytest.raises(UserError, match="0 tokens; make it less ambiguous"):
            allowed(matcher)
    assert allowed(matcher)
    matcher._matcher.consume_token(0)  # not allowed: from then on it is in error
    with pytest.raises(UserError, match="constraint: "):
        allowed(matcher)
