"""Requests drawn from the server's own OpenAPI, and from beside it: none may break it."""

from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

schemathesis = pytest.importorskip("schemathesis")
openapi = pytest.importorskip("schemathesis.specs.openapi.checks")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def api(server):
    return schemathesis.openapi.from_url(server.url + "/openapi.json")


OPERATIONS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/health"),
    ("GET", "/ready"),
]


def shorten(body):
    """Fewer tokens than a request may ask for: it is the request that is tested."""
    if not isinstance(body, dict):
        return
    for name in ("max_tokens", "max_completion_tokens", "n"):
        if isinstance(body.get(name), int) and body[name] > 3:
            body[name] = 3
    if "max_completion_tokens" not in body:
        body.setdefault("max_tokens", 2)
    if isinstance(body.get("rsa"), dict):
        body["rsa"].setdefault("population", 2)
        body["rsa"].setdefault("candidates", 1)
        body["rsa"].setdefault("budget", 3)
        body["rsa"].setdefault("tail", 3)


def try_it(case):
    shorten(case.body)
    response = case.call(timeout=120)
    case.validate_response(
        response,
        checks=[
            schemathesis.checks.not_a_server_error,
            openapi.status_code_conformance,
            openapi.content_type_conformance,
            openapi.response_schema_conformance,
        ],
    )


def attack(api, method, path, examples):
    """Requests that the OpenAPI allows, and such as it does not."""
    operation = api[path][method]
    cases = st.one_of(
        operation.as_strategy(generation_mode=mode) for mode in schemathesis.GenerationMode
    )

    @hypothesis.settings(max_examples=examples, suppress_health_check=hypothesis.HealthCheck)
    @hypothesis.given(case=cases)
    def run(case):
        try_it(case)

    run()


def test_all_operations_are_tried(api):
    there = {(op.ok().method.upper(), op.ok().path) for op in api.get_all_operations()}
    assert there == set(OPERATIONS)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_no_request_breaks_the_server(api, method, path):
    attack(api, method, path, 25 if method == "POST" else 5)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "path"), OPERATIONS[:4])
def test_no_request_breaks_the_server_in_the_long_run(api, method, path):
    attack(api, method, path, 1000 if method == "POST" else 100)


def test_the_server_works_all_the_same(server):
    status, answer = server.post("/v1/completions", {"prompt": "x", "max_tokens": 2})
    assert status == 200 and answer["usage"]["completion_tokens"] == 2
