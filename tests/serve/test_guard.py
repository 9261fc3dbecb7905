"""Keys, and the command line that asks for them."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax import cli
from zaya_jax.errors import UserError
from zaya_jax.serve.errors import ApiError
from zaya_jax.serve.gate import Gate
from zaya_jax.serve.guard import host_of
from zaya_jax.serve.settings import Settings, digest, read_keys

KEY, OTHER = "sk-0123456789abcdef", "sk-fedcba9876543210"


def test_keys_of_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# ours\n\nalice {KEY}\n{OTHER}\n")
    settings = Settings("tiny", keys=read_keys(file))
    assert settings.owner(KEY) == "alice"
    assert settings.owner(OTHER) == "line 4"
    assert settings.owner(KEY + "x") is settings.owner("") is None
    assert KEY not in repr(settings)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no key"),
        ("short", "at least 16"),
        (f"a b {KEY}", "line 1"),
        (f"{KEY}\nbob {KEY}", "twice"),
    ],
)
def test_files_that_are_no_keys(tmp_path, text, says):
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(UserError, match=says):
        read_keys(file)


@given(key=st.text(min_size=1))
def test_any_text_may_be_given_for_a_key(key):
    assert Settings("tiny", keys={digest(KEY): "a"}).owner(key) == ("a" if key == KEY else None)


@pytest.mark.parametrize(
    ("header", "host"),
    [("localhost:80", "localhost"), ("[::1]:80", "::1"), ("Example.org", "example.org"), ("", "")],
)
def test_the_name_in_a_host_header(header, host):
    assert host_of(header) == host


def test_a_full_gate_says_when_to_come_back():
    told = []
    gate = Gate(3, 1, told.append)
    with gate.room(2), pytest.raises(ApiError) as full, gate.room(2):
        pass
    assert full.value.status == 429 and full.value.retry_after >= 1
    with pytest.raises(ApiError) as never, gate.room(4):
        pass
    assert never.value.status == 400
    with gate.room(3):
        assert gate.inside == 3
    assert gate.inside == 0
    gate.closed = True
    with pytest.raises(ApiError) as closed, gate.room(1):
        pass
    assert closed.value.status == 503
    assert told == ["queue_full", "too_large", "draining"]


def test_one_key_does_not_get_all_of_the_room():
    told = []
    gate = Gate(10, 1, told.append, each=4)
    with gate.room(3, owner="a"):
        with pytest.raises(ApiError, match="3 of 4 sequences of this key") as full:
            with gate.room(2, owner="a"):
                pass
        assert full.value.status == 429
        with gate.room(4, owner="b"), gate.room(3):
            with pytest.raises(ApiError, match="10 of 10 sequences are"), gate.room(1, owner="a"):
                pass
    with pytest.raises(ApiError, match="the server has 4"), gate.room(5, owner="a"):
        pass
    with gate.room(4, owner="a"):
        pass
    assert told == ["key_full", "queue_full", "too_large"] and gate.inside == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--model is missing"),
        (["--model=x", "--host=0.0.0.0"], "--api_keys=FILE, or --open"),
        (["--model=x", "--port=99999"], "0 to 65535"),
        (["--model=x", "--host=nowhere.invalid"], "--host=nowhere.invalid"),
        (["--model=x", "--chunks=a"], "--chunks=a"),
        (["--model=x", "--queue=-1"], "queue = -1"),
        (["--model=x", "--api_keys=/nonexistent"], "cannot be read"),
        (["--model=x", "--port=0"], "--model=x: no such folder"),
    ],
)
def test_mistakes_of_the_command_line(capsys, options, says):
    assert cli.main(["serve", *options]) == cli.WRONG_USE
    assert says in capsys.readouterr().err


def test_the_packages_that_it_needs_are_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert cli.main(["serve", "--model=x"]) == cli.WRONG_USE
    assert "fastapi: pip install -r requirements-serve.txt" in capsys.readouterr().err


def call(app, method, path, headers=(), body: bytes | None = b""):
    """One request to an ASGI application, without a network; a body that is None never comes."""
    sent = []
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method,
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "scheme": "http", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        "headers": [(k.lower().encode(), v.encode()) for k, v in headers],
    }  # fmt: skip

    bodies = iter([{"type": "http.request", "body": body, "more_body": False}] if body is not None
                  else [])  # fmt: skip

    async def receive():
        for message in bodies:
            return message
        await asyncio.Event().wait()  # the client stays

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    data = b"".join(message.get("body", b"") for message in sent)
    return sent[0]["status"], dict(sent[0]["headers"]), data


@pytest.fixture(scope="module")
def app(folder):
    """An application with keys, whose engine has not been started."""
    from zaya_jax.infer.engine import Engine, Options
    from zaya_jax.load import load
    from zaya_jax.serve.app import create_app
    from zaya_jax.serve.form import Form
    from zaya_jax.serve.service import Service

    loaded = load(folder)
    options = Options(rows=2, page=32, chunks=(64,), pool_bytes=10**7)
    settings = Settings("tiny", keys={digest(KEY): "alice"}, local=False)
    return create_app(Service(Engine(loaded, options), Form(loaded), settings))


def test_who_has_no_key_may_see_the_page_and_ask_nothing(app):
    for path in ("/", "/health", "/metrics", "/openapi.json"):
        assert call(app, "GET", path)[0] == 200
    bearer = ("Authorization", f"Bearer {KEY}")
    assert call(app, "GET", "/v1/models", [bearer])[0] == 200
    for headers in ([], [("Authorization", "Bearer nonsense")], [("Authorization", KEY)],
                    [("Authorization", f"Basic {KEY}")]):  # fmt: skip
        status, sent, body = call(app, "GET", "/v1/models", headers)
        assert status == 401 and sent[b"www-authenticate"] == b"Bearer"
        assert json.loads(body)["error"]["type"] == "authentication_error"
        assert call(app, "POST", "/v1/completions", headers, b"{}")[0] == 401


def test_a_server_that_starts_says_so(app):
    status, headers, body = call(app, "GET", "/ready")
    assert status == 503 and int(headers[b"retry-after"]) > 0
    assert json.loads(body)["error"]["code"] == "starting"


def test_a_body_that_does_not_come_is_not_waited_for(app, monkeypatch):
    settings = dataclasses.replace(app.state.service.settings, body_seconds=0.05)
    monkeypatch.setattr(app.state.service, "settings", settings)
    headers = [("Authorization", f"Bearer {KEY}"), ("Content-Type", "application/json")]
    status, _, body = call(app, "POST", "/v1/completions", headers, None)
    assert status == 408 and json.loads(body)["error"]["type"] == "timeout_error"


def test_who_finds_no_room_is_told_when_there_is_some(app):
    headers = [("Authorization", f"Bearer {KEY}"), ("Content-Type", "application/json")]
    gate = app.state.service.gate
    with gate.room(gate.limit - 1):
        status, sent, body = call(
            app, "POST", "/v1/completions", headers, b'{"prompt": "x", "n": 2}'
        )
    assert status == 429 and int(sent[b"retry-after"]) >= 1
    error = json.loads(body)["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "queue_full")


def test_what_never_has_room_is_not_told_to_come_again(app):
    headers = [("Authorization", f"Bearer {KEY}"), ("Content-Type", "application/json")]
    service = app.state.service
    body = json.dumps({"prompt": [5] * service.engine.capacity}).encode()
    with service.gate.room(service.gate.limit):
        status, _, answer = call(app, "POST", "/v1/completions", headers, body)
    assert status == 400 and json.loads(answer)["error"]["code"] == "context_length_exceeded"


def test_the_page_may_load_nothing_and_run_only_itself(app):
    _, headers, body = call(app, "GET", "/")
    policy = headers[b"content-security-policy"].decode()
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert b"http" not in body.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"innerHTML" not in body and b"insertAdjacentHTML" not in body


def ask(app, path, body):
    headers = [("Authorization", f"Bearer {KEY}"), ("Content-Type", "application/json")]
    status, _, answer = call(app, "POST", path, headers, json.dumps(body).encode())
    return status, json.loads(answer)["error"]


CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = {"messages": [{"role": "user", "content": "hi"}]}


def test_too_many_sequences_are_refused_before_anything_is_encoded(app, monkeypatch):
    async def encode(*_):
        raise AssertionError("a prompt is encoded")

    monkeypatch.setattr(app.state.service, "encode", encode)
    for prompts, n in ((["a"] * 100_000, 128), ([[5]] * 129, 1), ("a", 128)):
        with app.state.service.gate.room(app.state.service.gate.limit - 100):
            status, error = ask(app, TEXT, {"prompt": prompts, "n": n})
        assert (status in (400, 429)) and "sequences" in error["message"]


def test_a_model_without_a_tokenizer_solves_nothing(folder):
    from zaya_jax.infer.engine import Engine, Options
    from zaya_jax.load import load
    from zaya_jax.serve.app import create_app
    from zaya_jax.serve.form import Form
    from zaya_jax.serve.service import Service

    loaded = dataclasses.replace(load(folder), tokenizer=None)
    options = Options(rows=2, page=32, chunks=(64,), pool_bytes=10**7)
    service = Service(Engine(loaded, options), Form(loaded), Settings("tiny", local=False))
    rsa = {"population": 2, "candidates": 1, "rounds": 1, "tail": 4, "budget": 6}
    for body in (HI | {"rsa": rsa}, HI | {"rsa": {}}, HI | {"rsa": rsa, "stream": True}, HI):
        status, error = ask(create_app(service), CHAT, body)
        assert status == 400 and "this model has no tokenizer" in error["message"]
    assert service.gate.inside == service.solving.inside == 0


@pytest.mark.parametrize(
    "parameters",
    [
        {"type": "object", "properties": {"p": {"type": "string", "pattern": "[" * 100_000}}},
        {"type": "object", "properties": {f"p{i}": {"enum": ["a"]} for i in range(20_000)}},
    ],
)
def test_tools_do_not_hold_up_the_server(app, parameters):
    function = {"name": "f", "parameters": parameters, "strict": True}
    body = HI | {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}
    status, error = ask(app, CHAT, body)
    assert status == 400 and error["message"].startswith("tools: f: parameter")
    assert app.state.service.gate.inside == 0


def test_a_grammar_of_one_long_name_does_not_hold_up_the_server(app):
    body = HI | {"response_format": {"type": "grammar", "grammar": "a" * 131_000}}
    assert ask(app, CHAT, body)[0] == 400


@pytest.mark.parametrize(
    ("rsa", "says"),
    [
        ({"population": 10**9}, "less than or equal to 1024"),
        ({"population": 1000, "candidates": 900}, "less than or equal to 64"),
        ({"population": 200}, "200 sequences"),
        ({"tail": 10**30}, "less than or equal to"),
        ({"budget": 2**31 - 1}, "do not fit the "),
    ],
)
def test_a_run_is_bounded_before_its_prompts_are_made(app, rsa, says):
    status, error = ask(app, CHAT, HI | {"rsa": rsa})
    assert status == 400 and says in error["message"]
    assert app.state.service.gate.inside == app.state.service.solving.inside == 0


def test_limits_of_completions_and_requests_bind_runs_too(app):
    from zaya_jax.infer.rsa import PRESETS
    from zaya_jax.serve.rsa import limited

    few = limited(PRESETS["16k-4k"], 100)
    assert (few.budget, few.final_budget) == (100, 100)
    assert limited(PRESETS["16k-4k"], None) is PRESETS["16k-4k"]


@pytest.mark.parametrize(
    "field",
    [
        {"top_k": 10**30},
        {"repetition_guard": {"rounds": 10**30}},
        {"repetition_guard": {"least": 10**30}},
        {"repetition_guard": {"certain": 10**30}},
    ],
)
def test_numbers_beyond_any_sense_are_refused(app, field):
    assert ask(app, TEXT, {"prompt": "x"} | field)[0] == 400


def test_prompts_of_different_keys_are_kept_apart(app):
    from zaya_jax.serve.service import Record

    service = app.state.service
    assert service.salt(Record(owner="alice")) != service.salt(Record(owner="bob")) != ""


def test_grammars_that_end_a_compiler_do_not_end_the_server(app, monkeypatch):
    """What the bounds know, and, where they know nothing, what the trial finds."""
    from zaya_jax.grammar import bounds

    links = {f"a{i}": {"allOf": [{"$ref": f"#/$defs/a{i + 1}"}]} for i in range(3000)}
    deep = {"$ref": "#/$defs/a0", "$defs": links | {"a3000": {"type": "string"}}}
    body = {"prompt": "x", "response_format": {"type": "json_schema",
                                               "json_schema": {"schema": deep}}}  # fmt: skip
    status, error = ask(app, TEXT, body)
    assert status == 400 and "$ref names more than 256 places" in error["message"]
    monkeypatch.setattr(bounds, "check_schema", lambda schema: None)
    monkeypatch.setattr(bounds, "check_length", lambda text: None)
    status, error = ask(app, TEXT, body)
    assert status == 400 and "more than the compiler can take" in error["message"]
    monkeypatch.undo()
    monkeypatch.setattr(app.state.service.compiler._workers, "_seconds", 1e-6)
    status, error = ask(app, TEXT, {"prompt": "x", "response_format": {
        "type": "regex", "pattern": "(a|b){5}"}})  # fmt: skip
    assert status == 400 and "to compile" in error["message"]
    monkeypatch.undo()
    good = {"prompt": "x", "response_format": {"type": "regex", "pattern": "(a|b){5}"}}
    assert ask(app, TEXT, good)[0] == 503  # it compiles; this engine has not been started
    assert app.state.service.gate.inside == 0
    app.state.service.compiler.close()


def test_a_step_that_does_not_end_is_told(app, monkeypatch):
    import time

    worker = app.state.service.worker
    assert worker.step_age == 0 and call(app, "GET", "/health")[0] == 200
    monkeypatch.setattr(worker, "_step_began", time.monotonic() - 10_000)
    assert call(app, "GET", "/health")[0] == 500
