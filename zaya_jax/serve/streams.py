"""Answers to clients that may leave: server-sent events, and bodies that are made meanwhile."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from zaya_jax.serve.errors import ApiError

log = logging.getLogger(__name__)
T = TypeVar("T")

PATIENCE = 15.0
"""Seconds of silence after which a comment is sent: proxies cut connections that seem dead."""
STALLED = 60.0
"""Seconds after which a client that reads nothing counts as gone."""
DONE = b"data: [DONE]\n\n"
SAFE_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class ClientGone(Exception):
    """The client has closed the connection."""


def dumps(value: Any) -> bytes:
    """JSON in UTF-8, whatever the texts in it hold: halves of characters are escaped.

    Raises:
      ValueError: a number that is not finite, which JSON does not have.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False).encode()


def sse(record: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + dumps(record) + b"\n\n"


async def left(receive: Receive) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives; it is cancelled if the client leaves.

    Raises:
      ClientGone: it has left.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(left(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        await _end(task, gone)


class EventStream(Response):
    """Sends what a generator makes, until that ends or the client leaves.

    An ApiError on the way becomes an event, the last one; so does, without words, any other
    exception. The generator is always closed.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        on_gone: Callable[[], None] = lambda: None,
    ):
        super().__init__(headers=SAFE_HEADERS)
        del self.headers["content-length"]
        self._events, self._on_gone = events, on_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code}
        await send(start | {"headers": self.raw_headers})
        pump = asyncio.ensure_future(self._pump(send))
        gone = asyncio.ensure_future(left(receive))
        try:
            await asyncio.wait({pump, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not pump.done() or isinstance(pump.exception(), TimeoutError | OSError):
                self._on_gone()
            else:
                pump.result()
        finally:
            await _end(pump, gone)
            await self._events.aclose()

    async def _pump(self, send: Send) -> None:
        async def write(data: bytes, more: bool = True) -> None:
            async with asyncio.timeout(STALLED):
                await send({"type": "http.response.body", "body": data, "more_body": more})

        try:
            upcoming = asyncio.ensure_future(anext(self._events, None))
            try:
                while True:
                    done, _ = await asyncio.wait({upcoming}, timeout=PATIENCE)
                    if not done:
                        await write(b": still at it\n\n")
                        continue
                    if (data := upcoming.result()) is None:
                        break
                    await write(data)
                    upcoming = asyncio.ensure_future(anext(self._events, None))
            finally:
                await _end(upcoming)
        except ApiError as error:
            await write(sse(error.body()))
        except (TimeoutError, OSError):
            raise
        except Exception:
            log.exception("an answer broke off")
            await write(sse(ApiError(500, "the server has failed; its log says how").body()))
        await write(b"", more=False)


async def _end(*tasks: asyncio.Future) -> None:
    """Cancels what is not done, and waits for it."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
