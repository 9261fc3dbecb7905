"""Requests that are wrong: the status, and a message that helps."""

from __future__ import annotations

import json
import socket
import time
from urllib.parse import urlparse

import pytest

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
X = {"prompt": "x", "max_tokens": 2}
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "says"),
    [
        (CHAT, HI | {"max_tokens": -5}, 400, "max_tokens", "greater than or equal to 1"),
        (TEXT, X | {"max_tokens": -1}, 400, "max_tokens", "greater than or equal to 0"),
        (CHAT, HI | {"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        (CHAT, HI | {"temperature": "hot"}, 400, "temperature", "valid number"),
        (CHAT, HI | {"top_p": 0}, 400, "top_p", "greater than 0"),
        (CHAT, HI | {"n": 0}, 400, "n", "greater than or equal to 1"),
        (TEXT, X | {"prompt": ["x"] * 200}, 400, None, "200 sequences"),
        (CHAT, HI | {"seed": 2**70}, 400, "seed", "less than"),
        (CHAT, HI | {"seed": True}, 400, "seed", "integer"),
        (CHAT, HI | {"stop": [""]}, 400, "stop", "at least 1 character"),
        (CHAT, HI | {"stop": ["x"] * 17}, 400, "stop", "at most 16"),
        (CHAT, HI | {"temprature": 1}, 400, "temprature", "did you mean temperature?"),
        (CHAT, HI | {"max_completion_tokens": 3}, 400, "max_tokens", "give one of them"),
        (CHAT, HI | {"logit_bias": {"5": 1}}, 400, "logit_bias", "not supported"),
        (CHAT, HI | {"presence_penalty": 0.5}, 400, "presence_penalty", "repetition_guard"),
        (CHAT, HI | {"functions": [{}]}, 400, "functions", "old name of tools"),
        (CHAT, HI | {"modalities": ["audio"]}, 400, "modalities", "text"),
        (CHAT, HI | {"stream_options": {}}, 400, "stream_options", "stream: true"),
        (TEXT, X | {"suffix": "y"}, 400, "suffix", "continues"),
        (TEXT, X | {"best_of": 3}, 400, "best_of", "beyond n"),
        (TEXT, X | {"logprobs": 1000}, 400, "logprobs", "0 to 20"),
        (CHAT, HI | {"top_logprobs": 3}, 400, "top_logprobs", "logprobs: true"),
        (TEXT, X | {"prompt": {}}, 400, "prompt", "list of token ids"),
        (TEXT, X | {"prompt": []}, 400, "prompt", "list of token ids"),
        (TEXT, X | {"prompt": [[]]}, 400, "prompt", "list of token ids"),
        (TEXT, X | {"prompt": [1, "x"]}, 400, "prompt", "list of token ids"),
        (TEXT, X | {"prompt": [5, 10**6]}, 400, "prompt", "outside model.vocab_size"),
        (TEXT, X | {"prompt": [-1]}, 400, "prompt", "outside model.vocab_size"),
        (TEXT, {"max_tokens": 2}, 400, "prompt", "prompt is missing"),
        (TEXT, X | {"prompt": "x" * 5000}, 400, None, "must hold it"),
        (TEXT, X | {"model": "gpt-9"}, 404, "model", "there is 'tiny'"),
        (CHAT, {"messages": []}, 400, "messages", "at least 1 item"),
        (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, 400, "messages", "system"),
        (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, "messages", "must be text"),
        (CHAT, {"messages": ["hi"]}, 400, "messages", "dictionary"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400,
         "messages", "parts of type 'text'"),
        (CHAT, HI | {"tools": [{"type": "function"}]}, 400, "tools", "missing"),
        (CHAT, HI | {"tools": [TOOL, TOOL]}, 400, "tools", "same name"),
        (CHAT, HI | {"tools": [TOOL | {"function": {"name": "a b"}}]}, 400, "tools", "pattern"),
        (CHAT, HI | {"tool_choice": "required"}, 400, "tool_choice", "no tools"),
        (CHAT, HI | {"tools": [TOOL], "tool_choice": {"type": "function",
         "function": {"name": "g"}}}, 400, "tool_choice", "no function 'g'"),
        (CHAT, HI | {"response_format": {"type": "xml"}}, 400, "response_format", "json_schema"),
        (CHAT, HI | {"response_format": {"type": "json_schema", "json_schema": {
         "name": "s", "schema": {"type": "stuff"}}}}, 400, None, "stuff"),
        (CHAT, HI | {"response_format": {"type": "regex", "pattern": "("}}, 400, None, "lark"),
        (CHAT, HI | {"rsa": {"population": 2, "candidates": 3}}, 400, "rsa", "different ones"),
        (CHAT, HI | {"rsa": {"preset": "16k"}}, 400, "rsa", "did you mean 16k-4k?"),
        (CHAT, HI | {"rsa": {"budget": -1}}, 400, "rsa", "greater than or equal to 1"),
        (CHAT, HI | {"rsa": {"selection": "verifier"}}, 400, "rsa", "'majority'"),
        (CHAT, HI | {"rsa": {}, "tools": [TOOL]}, 400, "tools", "combined with rsa"),
        (CHAT, HI | {"rsa": {}, "n": 2}, 400, "n", "selection: none"),
        (CHAT, [1, 2], 400, None, "object"),
        (CHAT, b"", 400, None, "object"),
        (CHAT, b"{'a': 1}", 400, None, "not JSON"),
        (CHAT, b'{"a": "\xff"}', 400, None, "parsing the body"),
        (CHAT, b'{"a":' * 100_000, 400, None, "parsing the body"),
        (CHAT, b'{"seed": ' + b"9" * 5000 + b"}", 400, None, ""),
        (TEXT, b'{"prompt": "\\ud800"}', 400, "prompt", ""),
        (CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400, "messages", ""),
        (CHAT, b'{"\\ud800": 1}', 400, None, ""),
        (TEXT, b'{"prompt": "x", "temperature": NaN}', 400, "temperature", ""),
        ("/v1/embeddings", {}, 404, None, "no such route"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(server, path, body, status, param, says):
    found, answer = server.post(path, body)
    assert found == status, answer
    assert set(answer) == {"error"} and set(answer["error"]) == {"message", "type", "param", "code"}
    assert says in answer["error"]["message"]
    assert param is None or answer["error"]["param"] == param


def test_a_prompt_beyond_the_context_has_its_code(server):
    body = {"messages": [{"role": "user", "content": "word " * 2000}]}
    status, answer = server.post(CHAT, body)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


def test_other_methods_and_content_types(server):
    status, answer = server.ask("GET", CHAT, None)
    assert status == 405 and "error" in json.loads(answer)
    status, answer = server.post(CHAT, HI, Content_Type="text/plain")
    assert status == 400 and "application/json" in answer["error"]["message"]


def test_a_body_that_is_too_large(server):
    big = json.dumps(X | {"prompt": "x" * (5 * 2**20)}).encode()
    status, answer = server.post(TEXT, big)
    assert status == 413 and "larger than 4,194,304 bytes" in answer["error"]["message"]
    where = urlparse(server.url)
    with socket.create_connection((where.hostname, where.port), timeout=20) as raw:
        raw.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json"
            b"\r\nContent-Length: 99999999999\r\n\r\n{"
        )
        assert raw.recv(65536).startswith(b"HTTP/1.1 413")


def test_answers_only_to_the_name_of_this_machine(server):
    """A web page under a name of its own that resolves to 127.0.0.1 must not reach the model."""
    status, answer = server.ask("GET", "/v1/models", None, Host="rebound.example.org")
    assert status == 403 and "localhost only" in json.loads(answer)["error"]["message"]
    assert server.ask("GET", "/v1/models", None, Host="LOCALHOST:1234")[0] == 200


def test_request_ids_and_the_log(server):
    secret = "a prompt that is nobody's business"
    status, _ = server.post(TEXT, X | {"prompt": secret}, X_Request_Id="mine-1")
    assert status == 200
    deadline = time.monotonic() + 5
    while not (lines := [line for line in server.log if line.get("id") == "mine-1"]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (line,) = lines
    assert (line["status"], line["path"], line["completion_tokens"]) == (200, TEXT, 2)
    assert line["prompt_tokens"] > 0 and line["finish"] == ["length"]
    assert secret not in json.dumps(server.log)
    server.post(TEXT, X, X_Request_Id='bad"id')
    assert not any(line.get("id") == 'bad"id' for line in server.log)


def test_metrics_count(server):
    def value(name):
        lines = server.get("/metrics")[1].decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    names = ("zaya_prompt_tokens_total", "zaya_completion_tokens_total",
             'zaya_requests_total{route="/v1/completions",status="200"}',
             "zaya_first_token_seconds_count", "zaya_engine_step_seconds_count")  # fmt: skip
    before = [value(name) for name in names]
    assert server.post(TEXT, X | {"prompt": [5, 6, 7], "max_tokens": 4})[0] == 200
    after = [value(name) for name in names]
    grown = [b - a for a, b in zip(before, after, strict=True)]
    assert grown[:4] == [3, 4, 1, 1] and grown[4] >= 2
    assert value('zaya_sequences{state="running"}') == 0
    held, free = value('zaya_pages{state="held"}'), value('zaya_pages{state="free"}')
    assert held == 0 and free > 0


def test_a_client_that_leaves_ends_its_request(server):
    where = urlparse(server.url)
    for stream in (True, False):
        body = json.dumps({"prompt": "x", "max_tokens": 900, "stream": stream,
                           "ignore_eos": True}).encode()  # fmt: skip
        with socket.create_connection((where.hostname, where.port), timeout=20) as raw:
            head = f"POST {TEXT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            raw.sendall(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            if stream:
                raw.recv(100)
            else:
                time.sleep(0.3)
        deadline = time.monotonic() + 20
        while b'zaya_sequences{state="running"} 0.0' not in server.get("/metrics")[1]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    ended = [line for line in server.log if line.get("finish") == ["length"]
             and line.get("completion_tokens") == 900]  # fmt: skip
    assert not ended
