"""Streamed text: whole characters, and stop strings wherever the borders of tokens fall."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.data.tokenizer import train_bpe
from zaya_jax.infer.text import TextStream

TOKENIZER = train_bpe(["a b ab abc END of stop\n\n" * 20, "naïve 🙂 " * 20], 290)


def bytewise(text: str) -> list[int]:
    """One token a byte: the most borders there can be."""
    single = {data: i for i, data in enumerate(TOKENIZER.token_bytes) if len(data) == 1}
    return [single[bytes([byte])] for byte in text.encode()]


def feed(tokens: list[int], stops=()) -> tuple[list[str], TextStream]:
    stream = TextStream(TOKENIZER, stops)
    pieces = [stream.push(token) for token in tokens]
    return [*pieces, stream.close()], stream


def cut(text: str, stops) -> str:
    """The definition: read character by character until a stop string is complete."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


@given(
    text=st.text(alphabet="abcEND \n🙂ï", max_size=40),
    stops=st.lists(st.text(alphabet="abcEN\n🙂", min_size=1, max_size=4), max_size=3),
    split=st.booleans(),
)
def test_the_pieces_are_the_text_before_the_first_stop(text, stops, split):
    tokens = bytewise(text) if split else TOKENIZER.encode(text)
    pieces, stream = feed(tokens, stops)
    assert "".join(pieces) == stream.text == cut(text, stops)
    assert stream.stopped == any(stop in text for stop in stops)


def test_a_possible_stop_is_held_back_and_given_out_when_it_is_none():
    pieces, stream = feed(bytewise("xENx"), ["END"])
    assert pieces == ["x", "", "", "ENx", ""] and not stream.stopped


def test_what_is_held_back_comes_out_at_the_end():
    pieces, _ = feed(bytewise("xEN"), ["END"])
    assert pieces == ["x", "", "", "EN"]


def test_a_character_is_shown_when_it_is_whole():
    pieces, _ = feed(bytewise("a🙂b"))
    assert pieces == ["a", "", "", "", "🙂", "b", ""]


def test_special_and_unknown_tokens_are_silent():
    beyond = TOKENIZER.vocab_size + 3  # a row of the embedding that no token uses
    pieces, _ = feed([*bytewise("a"), TOKENIZER.eos_id, beyond, *bytewise("b")])
    assert "".join(pieces) == "ab"


@pytest.mark.parametrize("stops", [(), ("x",)])
def test_without_a_tokenizer_there_is_no_text(stops):
    stream = TextStream(None, stops)
    assert stream.push(5) == "" and stream.close() == ""
