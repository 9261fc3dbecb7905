"""What stands before every route: who may ask, how much, and the line in the log afterwards."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zaya_jax.serve.errors import ApiError
from zaya_jax.serve.service import Record, Service
from zaya_jax.serve.settings import LOOPBACK

log = logging.getLogger("zaya_jax.serve.requests")

OPEN = ("/", "/health", "/ready", "/metrics", "/openapi.json")
"""Routes that need no key."""
DRAINED = 16 * 2**20
"""Bytes of a body that is too large which are read all the same, so that its client reads why."""
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


class Guard:
    """An ASGI middleware."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1000})
                return
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        id = given if _ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
        record = Record()
        scope.setdefault("state", {})["record"] = record
        begun = time.perf_counter()
        status, owner = 0, None

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                more = MutableHeaders(scope=message)
                more["X-Request-Id"] = id
                more["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            owner = record.owner = self._admit(scope, headers)
            await self._app(scope, self._limited(headers, receive), answer)
        except ApiError as error:
            await _refuse(error, answer)
        finally:
            seconds = time.perf_counter() - begun
            route = getattr(scope.get("route"), "path", "other")
            self._service.metrics.answered(route, status, seconds)
            if route not in ("/health", "/ready", "/metrics"):
                self._log(scope, id, owner, status, seconds, record)

    def _admit(self, scope: Scope, headers: Headers) -> str | None:
        """The name of whoever asks; None if nobody is known by name here.

        Raises:
          ApiError: they may not.
        """
        settings = self._service.settings
        if settings.local and host_of(headers.get("host", "")) not in LOOPBACK:
            raise ApiError(
                403,
                "this server answers requests to localhost only: start it with --open or "
                "--api_keys to answer under other names",
                code="host",
            )
        if not settings.keys or scope["path"] in OPEN:
            return None
        kind, _, key = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not key.strip():
            raise ApiError(
                401,
                "no API key: send the header `Authorization: Bearer KEY`",
                code="missing_api_key",
            )
        owner = settings.owner(key.strip())
        if owner is None:
            raise ApiError(401, "this API key is not known here", code="invalid_api_key")
        return owner

    def _limited(self, headers: Headers, receive: Receive) -> Receive:
        """`receive`, for a body of limited size that comes in limited time."""
        settings = self._service.settings
        most, taken, whole = settings.body_bytes, 0, False
        deadline = time.monotonic() + settings.body_seconds
        declared = headers.get("content-length", "")
        too_large = HTTPException(413, f"the body is larger than {most:,} bytes")

        async def limited() -> Message:
            nonlocal taken, whole
            if whole:
                return await receive()
            while True:
                try:
                    async with asyncio.timeout(deadline - time.monotonic()):
                        message = await receive()
                except TimeoutError:
                    raise HTTPException(408, "the body did not come in time") from None
                if message["type"] != "http.request":
                    return message
                taken += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                announced = int(declared) if declared.isdecimal() else 0
                if max(taken, announced) <= most:
                    return message
                if whole or max(taken, announced) > DRAINED + most:
                    raise too_large

        return limited

    def _log(
        self, scope: Scope, id: str, owner: str | None, status: int, seconds: float, record: Record
    ) -> None:
        client = scope.get("client")
        fields: dict[str, Any] = {
            "event": "request",
            "id": id,
            "client": client[0] if client else None,
            "key": owner,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 6),
        }
        if record.finish or record.prompt_tokens:
            fields |= {
                "prompt_tokens": record.prompt_tokens,
                "cached_tokens": record.cached_tokens,
                "completion_tokens": record.completion_tokens,
                "first_token_seconds": record.first_token_seconds,
                "finish": record.finish,
            }
        if self._service.settings.log_prompts and record.asked is not None:
            fields["asked"] = record.asked
        log.info("request", extra={"fields": fields})


def host_of(header: str) -> str:
    """The name or address in a Host header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


async def _refuse(error: ApiError, send: Send) -> None:
    body = json.dumps(error.body()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    pairs = [(k.lower().encode(), v.encode()) for k, v in (headers | error.headers()).items()]
    await send({"type": "http.response.start", "status": error.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, and the record's fields or its message."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
        }
        fields = getattr(record, "fields", None)
        line |= fields if fields is not None else {"message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)
