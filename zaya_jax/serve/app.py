"""The routes."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from zaya_jax.infer.rsa import PRESETS
from zaya_jax.serve import page, schema
from zaya_jax.serve.chats import Chat
from zaya_jax.serve.completions import Completions
from zaya_jax.serve.errors import ApiError, of_validation
from zaya_jax.serve.guard import Guard
from zaya_jax.serve.rsa import Solve
from zaya_jax.serve.service import Record, Service
from zaya_jax.serve.streams import ClientGone, EventStream, dumps, unless_gone
from zaya_jax.serve.work import STUCK

log = logging.getLogger(__name__)

GONE = 499
"""The status in the log of a request whose client left; nobody gets to read it."""
_FAULTS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.Error, "description": meaning}
    for status, meaning in {
        400: "The request is malformed, or asks for what there is not.",
        401: "No API key, or one that is not known.",
        403: "Asked under a name that the server does not answer to.",
        404: "No such model.",
        408: "The body did not come in time.",
        413: "The body is too large.",
        429: "No room now; Retry-After says when to try again.",
        500: "The engine has failed.",
        503: "The server is starting or stopping.",
    }.items()
}
_EVENT = {
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
"""Of a stream, which OpenAPI 3.1 has no word for: readers take the schema as that of an event."""
_STREAM = {"content": {"text/event-stream": {"schema": _EVENT}}}
_ANSWERS: dict[int | str, dict[str, Any]] = _FAULTS | {
    200: {"description": "The answer; server-sent events if `stream` is true.", **_STREAM}
}


def create_app(service: Service) -> FastAPI:
    """The server as an ASGI application; its worker is started and stopped by whoever runs it."""
    app = FastAPI(
        title="ZAYA in JAX",
        description="An OpenAI-compatible server, with Markovian RSA.",
        version="1",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(Guard, service=service)
    _handle_errors(app)
    _add_status(app, service)
    _add_models(app, service)

    @app.post("/v1/completions", responses=_ANSWERS, summary="Continue texts")
    async def completions(request: Request, body: schema.CompletionRequest) -> Response:
        record = _record(request, service, body)

        async def start() -> tuple[Completions, Any]:
            asked = Completions(service, body, record)
            return asked, await asked.begin()

        asked, run = await unless_gone(request, start())
        if body.stream:
            return EventStream(asked.stream(run), service.metrics.gone.inc)
        return _json(await unless_gone(request, asked.whole(run)))

    @app.post("/v1/chat/completions", responses=_ANSWERS, summary="Answer in a conversation")
    async def chat(request: Request, body: schema.ChatRequest) -> Response:
        record = _record(request, service, body)
        if body.rsa is not None:
            return await _solve(request, service, body, record)

        async def start() -> tuple[Chat, Any]:
            asked = Chat(service, body, record)
            return asked, await asked.begin()

        asked, run = await unless_gone(request, start())
        if body.stream:
            return EventStream(asked.stream(run), service.metrics.gone.inc)
        return _json(await unless_gone(request, asked.whole(run)))

    return app


async def _solve(
    request: Request, service: Service, body: schema.ChatRequest, record: Record
) -> Response:
    solve = Solve(service, body, record)
    await unless_gone(request, solve.begin())
    if body.stream:
        return EventStream(solve.stream(), service.metrics.gone.inc)
    return _json(await unless_gone(request, solve.whole()))


def _record(request: Request, service: Service, body: schema.Sampled) -> Record:
    record: Record = request.scope["state"]["record"]
    if service.settings.log_prompts:
        record.asked = body.model_dump(exclude_unset=True, by_alias=True)
    return record


def _json(content: Any) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(dumps(content), media_type="application/json", headers=headers)


def _add_status(app: FastAPI, service: Service) -> None:
    document = page.document()

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(document.html, media_type="text/html", headers=document.headers)

    @app.get("/health", summary="Whether the process works", responses={500: _FAULTS[500]})
    async def health() -> dict[str, str]:
        if service.worker.failure is not None:
            raise ApiError(500, "the engine has failed")
        if (age := service.worker.step_age) > STUCK:
            raise ApiError(500, f"the engine has been in one step for {age:.0f} s")
        return {"status": "ok"}

    @app.get("/ready", summary="Whether it takes requests", responses={503: _FAULTS[503]})
    async def ready() -> dict[str, str]:
        if service.stopping:
            raise ApiError(503, "the server is stopping", code="stopping", retry_after=30)
        service.worker.check()
        return {"status": "ready"}

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_models(app: FastAPI, service: Service) -> None:
    def described() -> dict[str, Any]:
        model = {
            "id": service.settings.name,
            "object": "model",
            "created": service.created,
            "owned_by": "local",
            "max_model_len": service.engine.capacity,
        }
        zaya = {
            "chat_template": service.form.chats,
            "thinking": service.form.thinks,
            "rsa_runs": service.settings.rsa,
            "rsa_presets": {
                name: {
                    "population": p.population, "candidates": p.candidates, "rounds": p.rounds,
                    "tail": p.tail, "budget": p.budget, "final_budget": p.final_budget,
                }
                for name, p in PRESETS.items()
            },
        }  # fmt: skip
        return model | {"zaya": zaya}

    refusals: dict[int | str, dict[str, Any]] = {status: _FAULTS[status] for status in (401, 403)}

    @app.get("/v1/models", summary="What is served", responses=refusals)
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described()]}

    @app.get(
        "/v1/models/{name:path}", summary="One model", responses=refusals | {404: _FAULTS[404]}
    )
    async def model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return described()


def _handle_errors(app: FastAPI) -> None:
    def told(error: ApiError) -> JSONResponse:
        # As ASCII: a message may quote what is no Unicode text.
        data = json.dumps(error.body(), ensure_ascii=True)
        response = JSONResponse(None, status_code=error.status, headers=error.headers())
        response.body = data.encode()
        response.headers["content-length"] = str(len(response.body))
        return response

    @app.exception_handler(ApiError)
    async def of_ours(request: Request, error: ApiError) -> Response:
        del request
        return told(error)

    @app.exception_handler(RequestValidationError)
    async def of_body(request: Request, error: RequestValidationError) -> Response:
        chat = request.url.path.endswith("/chat/completions")
        model = schema.ChatRequest if chat else schema.CompletionRequest
        return told(of_validation(error.errors(), model.model_fields))

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> Response:
        message = str(error.detail)
        if error.status_code == 404:
            message = f"no such route: {request.method} {request.url.path[:200]}"
        answer = told(ApiError(error.status_code, message))
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(ClientGone)
    async def of_gone(request: Request, error: ClientGone) -> Response:
        del error
        request.app.state.service.metrics.gone.inc()
        return Response(status_code=GONE)

    @app.exception_handler(Exception)
    async def of_bug(request: Request, error: Exception) -> Response:
        del request, error  # the server's log has it
        return told(ApiError(500, "the server has failed; its log says how"))
