"""What the model writes, taken apart: the same whatever the pieces in which it comes."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zaya_jax.data import chat
from zaya_jax.data.chat import SPECIAL_TOKENS
from zaya_jax.data.chat_template import ChatTemplate
from zaya_jax.data.tokenizer import train_bpe
from zaya_jax.infer.engine import Event, Result, Token
from zaya_jax.infer.text import TextStream
from zaya_jax.serve.reply import Message, Reply

TOKENIZER = train_bpe(["<function=f><parameter=k>v</parameter></function> some words\n" * 9], 330,
                      SPECIAL_TOKENS)  # fmt: skip
TEMPLATE = ChatTemplate.find()
TAGS = ("<think>", "</think>", "<zyphra_tool_call>", "</zyphra_tool_call>")
CONTROLS = {TOKENIZER.id_of(name): name for name in TAGS}
OPEN, CLOSE, CALL, END = (f"\0{name}\0" for name in TAGS)
TOOLS = {"f": {"properties": {"k": {"type": "string"}, "n": {"type": "integer"}}}}
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0<>"), max_size=12)


def ids_of(text):
    """Token ids; what stands between two NULs is a token by name."""
    ids = []
    for i, part in enumerate(text.split("\0")):
        ids += [TOKENIZER.id_of(part)] if i % 2 else TOKENIZER.encode(part)
    return ids


def events_of(ids, sizes, stops=(), finish="eos"):
    """Events as the engine makes them: certain text only, and nothing of a stop string."""
    stream = TextStream(TOKENIZER, stops)
    place, sizes = 0, iter(sizes)
    while True:
        part = ids[place : place + next(sizes, 1)]
        text = ""
        taken = []
        for id in part:
            text += stream.push(id)
            taken.append(Token(id, -1.0, 0))
            if stream.stopped:
                break
        place += len(part)
        last = place >= len(ids) or stream.stopped
        if last:
            text += stream.close()
        result = Result(stream.text, [], [], [], finish, 1) if last else None
        yield Event(0, tuple(taken), text, result)
        if last:
            return


def read(text, sizes=(), *, stops=(), thinking=False, tools=TOOLS, controls=CONTROLS):
    reply, message = Reply(TOKENIZER, controls, thinking=thinking, tools=tools), Message()
    for event in events_of(ids_of(text), sizes, stops):
        message.add(reply.push(event))
    return message, reply


SIZES = st.lists(st.integers(1, 5), max_size=40)


@given(reasoning=WORDS, content=WORDS, opened=st.booleans(), sizes=SIZES)
def test_reasoning_and_content_are_told_apart_whatever_the_pieces(
    reasoning, content, opened, sizes
):
    text = ("" if opened else OPEN) + f"\n{reasoning}\n{CLOSE}\n\n{content}"
    message, reply = read(text, sizes, thinking=opened)
    assert message.reasoning == reasoning.strip()
    assert message.content == content.lstrip()
    before = len(ids_of(text.partition(CLOSE)[0])) + 1
    assert reply.reasoning_tokens == before


@given(values=st.lists(st.tuples(WORDS, st.integers()), min_size=1, max_size=3), sizes=SIZES)
def test_calls_become_json_whatever_the_pieces(values, sizes):
    calls = [
        f"{CALL}<function=f><parameter=k>{word}</parameter>"
        f"<parameter=n>{number}</parameter></function>{END}"
        for word, number in values
    ]
    message, reply = read("first\n" + "\n".join(calls), sizes)
    found = [json.loads(call["function"]["arguments"]) for call in message.calls]
    assert found == [{"k": word, "n": number} for word, number in values]
    assert {call["function"]["name"] for call in message.calls} == {"f"}
    assert len({call["id"] for call in message.calls}) == len(values) == reply.calls
    assert message.content == "first\n"


@given(text=WORDS, stop=WORDS.filter(bool), sizes=SIZES)
def test_a_tag_behind_a_stop_string_does_not_count(text, stop, sizes):
    written = text.replace(stop, "") + stop
    first = written.index(stop)
    message, _ = read(f"{OPEN}{written}{CLOSE}after", sizes, stops=(stop,))
    assert message.reasoning == written[:first].strip()
    assert message.content == ""


def test_tags_that_are_text_to_the_engine_are_tags_all_the_same():
    plain = train_bpe(["words"], 300, SPECIAL_TOKENS)
    backend = json.loads(plain._backend.to_str())
    for token in backend["added_tokens"]:
        token["special"] = token["content"] not in TAGS
    import tokenizers

    from zaya_jax.data.tokenizer import Tokenizer

    visible = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(backend)))
    ids = {visible.id_of(name): name for name in TAGS}
    stream = TextStream(visible)
    tokens = [visible.id_of("<think>"), *visible.encode("why"), visible.id_of("</think>"),
              *visible.encode("so")]  # fmt: skip
    text = "".join(stream.push(id) for id in tokens)
    assert "<think>" in text  # the engine takes it for text
    result = Result(text, [], [], [], "eos", 1)
    event = Event(0, tuple(Token(id, -1.0, 0) for id in tokens), text, result)
    message = Message()
    message.add(Reply(visible, ids).push(event))
    assert (message.reasoning, message.content) == ("why", "so")


@pytest.mark.parametrize(
    ("text", "reasoning", "content", "calls"),
    [
        (f"{OPEN}cut off", "cut off", "", []),
        (f"{OPEN}a{CALL}<function=f></function>{END}", "a", "", [("f", "{}")]),
        (f"{CALL}nothing of the kind{END} rest", "",
         "<zyphra_tool_call>nothing of the kind</zyphra_tool_call> rest", []),
        (f"{CALL}<function=f><parameter=n>12</parameter>", "", "", [("f", '{"n": 12')]),
        (f"{CALL}<function=f><parameter=n>12</parameter>{END}", "", "", [("f", '{"n": 12}')]),
        (f"{CALL}cut", "", "<zyphra_tool_call>cut", []),
        (f"a{CLOSE}b", "", "ab", []),
        ("", "", "", []),
    ],
)  # fmt: skip
def test_what_is_malformed_is_not_lost(text, reasoning, content, calls):
    message, _ = read(text)
    assert message.reasoning == reasoning
    assert message.content == content
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in message.calls] == calls


def test_without_tools_a_call_is_text():
    message, _ = read(f"{CALL}<function=f></function>{END}", tools=None)
    assert message.content == "<zyphra_tool_call><function=f></function></zyphra_tool_call>"


def test_without_a_chat_template_all_is_content_as_it_is():
    message, _ = read("  words \n", controls={})
    assert message.content == "  words \n"


PARTS = st.sampled_from(
    [OPEN, CLOSE, CALL, END, "<function=f>", "<parameter=n>", "12", "</parameter>", "</function>",
     "words", " ", "<think>", "</think>", '{"', "<zyphra_tool_call>"]
)  # fmt: skip


@given(parts=st.lists(PARTS, max_size=12), opened=st.booleans())
@example(parts=["words"], opened=True)  # cut while it thinks
@example(parts=[CALL, "<function=f>", "<parameter=n>", "12", "</parameter>"], opened=False)
@example(parts=["</think>"], opened=False)  # spelled, not the token
@example(parts=[], opened=False)
def test_whatever_was_answered_may_be_sent_back(parts, opened):
    answer = read("".join(parts), thinking=opened)[0].as_json()
    user = {"role": "user", "content": "and?"}
    ids = chat.prompt([user, answer, user], TOKENIZER, TEMPLATE, lenient=True)
    # What was spelled is no control token, and no turn is opened by an answer.
    turns = [id for id in ids if id == TOKENIZER.id_of("<|im_start|>")]
    assert len(turns) == 4
