"""Bytes to clients: JSON that is JSON, and clients that read nothing."""

from __future__ import annotations

import asyncio
import json

import pytest

from zaya_jax.infer.engine import Token
from zaya_jax.serve import streams
from zaya_jax.serve.logprobs import Listing, Names
from zaya_jax.serve.streams import EventStream, dumps, sse
from zaya_jax.serve.tools import Call, value_of


def test_halves_of_characters_are_escaped_and_the_rest_is_not():
    assert json.loads(dumps({"a": "\ud800é"})) == {"a": "\ud800é"}
    assert "é".encode() in dumps("é") and b"\\u" not in dumps("é")
    assert json.loads(sse({"x": "\udfff"})[6:]) == {"x": "\udfff"}
    with pytest.raises(ValueError):
        dumps(float("inf"))


def test_arguments_of_calls_are_json_whatever_the_model_writes():
    call = Call({"f": {}})
    text = call.push('<function=f><parameter=a>{"x": 1e999}</parameter>'
                     '<parameter=b>["\\ud800"]</parameter></function>')  # fmt: skip
    text += call.close()
    assert json.loads(text.encode(), parse_constant=pytest.fail) == {
        "a": '{"x": 1e999}',
        "b": ["\ud800"],
    }
    assert value_of("1e999", {"type": "number"}) == "1e999"
    assert value_of("1e9", {"type": "number"}) == 1e9


def test_scores_of_minus_infinity_are_numbers():
    token = Token(5, float("-inf"), 0, ((5, float("-inf")), (6, -1.0)))
    for told in (Names(None).chat([token]), Listing(Names(None), None, top=True).add([token])):
        assert b"-9999.0" in dumps(told)


def test_a_client_that_reads_nothing_counts_as_gone(monkeypatch):
    monkeypatch.setattr(streams, "STALLED", 0.05)
    told = []

    async def events():
        try:
            while True:
                yield b"data: x\n\n"
        finally:
            told.append("closed")

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # the socket's buffer is full

    async def run():
        stream = EventStream(events(), lambda: told.append("gone"))
        async with asyncio.timeout(20):
            await stream({"type": "http"}, receive, send)

    asyncio.run(run())
    assert told == ["gone", "closed"]
