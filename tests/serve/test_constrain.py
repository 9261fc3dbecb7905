"""What a request demands of the text, as one grammar for all that the model writes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from zaya_jax.data.chat import SPECIAL_TOKENS
from zaya_jax.data.tokenizer import train_bpe
from zaya_jax.errors import UserError
from zaya_jax.infer.engine.grammar import Grammars
from zaya_jax.serve import constrain, schema
from zaya_jax.serve.errors import ApiError

TOKENIZER = train_bpe(["some words"], 300, SPECIAL_TOKENS)
GRAMMARS = Grammars(TOKENIZER, TOKENIZER.vocab_size, frozenset([TOKENIZER.eos_id]))
FORM = SimpleNamespace(id_of=TOKENIZER.id_of)
THINK, DONE, CALL, END = (f"\0{name}\0" for name in SPECIAL_TOKENS[2:6])
NUMBER = {
    "type": "json_schema",
    "json_schema": {"schema": {"type": "integer", "minimum": 0, "maximum": 9}},
}
TOOLS = [{"type": "function", "function": {"name": "f"}}]
HI = [{"role": "user", "content": "hi"}]


def constraint(*, opened=False, thinking=None, **body):
    request = schema.ChatRequest(messages=HI, **body)
    tools = [tool.model_dump(exclude_none=True) for tool in request.tools or []]
    return constrain.of_chat(request, tools, FORM, opened=opened, enable_thinking=thinking)


def fits(bound, text):
    """Whether a whole text may be written; what stands between NULs is one token."""
    matcher = GRAMMARS.matcher(bound)
    for i, part in enumerate(text.split("\0")):
        ids = [TOKENIZER.id_of(part)] if i % 2 else TOKENIZER.encode(part)
        if not all(matcher.push(id) for id in ids):
            return False
    return matcher.push(TOKENIZER.eos_id)


@pytest.mark.parametrize(
    ("how", "good", "bad"),
    [
        ({}, ["7", f"{THINK}why?{DONE}\n\n7"], ["x", f"{THINK}why?", f"why?{DONE}7", "77"]),
        ({"opened": True}, [f"why?{DONE}7"], ["7", f"{THINK}why?{DONE}7"]),
        ({"thinking": False}, ["7", "\n\n7"], [f"{THINK}why?{DONE}7"]),
    ],
)
def test_an_answer_is_bound_and_the_reasoning_before_it_is_free(how, good, bad):
    bound = constraint(response_format=NUMBER, **how)
    assert all(fits(bound, text) for text in good)
    assert not any(fits(bound, text) for text in bad)


def test_calls_are_demanded_or_allowed_beside_an_answer():
    call = f"{CALL}<function=f></function>{END}"
    demanded = constraint(tools=TOOLS, tool_choice="required")
    assert fits(demanded, call) and fits(demanded, call * 2) and not fits(demanded, "7")
    assert fits(demanded, f"{THINK}I must{DONE}{call}")
    one = constraint(tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    assert fits(one, call) and not fits(one, call * 2)
    either = constraint(tools=TOOLS, response_format=NUMBER)
    assert fits(either, call) and fits(either, "7") and not fits(either, "7" + call)
    assert constraint(tools=TOOLS) is None


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("a/b+", "a/bb", "ab"),
        (r"a\/b", "a/b", r"a\/b"),
        (r"\\/", "\\/", "/"),
        ("[0-9]{2}", "42", "4"),
    ],
)
def test_a_pattern_means_the_same_in_chats_and_in_texts(pattern, good, bad):
    given = {"type": "regex", "pattern": pattern}
    chat = constraint(response_format=given, thinking=False)
    text = constrain.of_text(schema.CompletionRequest(prompt="", response_format=given)
                             .response_format)  # fmt: skip
    for bound in (chat, text):
        assert fits(bound, good) and not fits(bound, bad)


def test_what_cannot_be_is_told():
    grammar = {"type": "grammar", "grammar": 'start: "x"'}
    with pytest.raises(ApiError, match="exclude each other"):
        constraint(response_format=grammar, tools=TOOLS, tool_choice="required")
    with pytest.raises(UserError, match="lark"):
        GRAMMARS.matcher(constraint(response_format={"type": "regex", "pattern": "("}))
