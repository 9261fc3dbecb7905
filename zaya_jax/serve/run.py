"""Runs a service until it is told to stop: signals, draining, the exit status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn

from zaya_jax.serve.app import create_app
from zaya_jax.serve.guard import JsonLines
from zaya_jax.serve.service import Service

log = logging.getLogger(__name__)

CLOSING = 5
"""Seconds for connections to close once nothing is under way."""


class _Server(uvicorn.Server):
    """uvicorn's, without its handling of signals: ours lets requests end first."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(service: Service, listener: socket.socket, *, warm_up: bool) -> int:
    """Serves at a bound socket until SIGTERM or SIGINT.

    Returns:
      0 if every request that was let in has ended, or its client was told that it has not; 1 if
      the engine has failed.
    """
    _log_to_stderr()
    status = asyncio.run(_serve(service, listener, warm_up))
    if service.worker.alive:  # it compiles, which nothing can interrupt, and nobody waits for it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


async def _serve(service: Service, listener: socket.socket, warm_up: bool) -> int:
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=CLOSING,
    )
    server, told = _Server(config), asyncio.Event()

    def stop() -> None:
        if told.is_set():
            service.end()
            service.impatient = True
        told.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    service.worker.start(warm_up=warm_up, on_failure=told.set)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    waiting = asyncio.create_task(told.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    log.info("stopping", extra={"fields": {"event": "stopping", "inside": service.gate.inside}})
    await service.drain()
    server.should_exit = True
    await serving
    await service.stop()
    left = service.gate.inside
    log.info("stopped", extra={"fields": {"event": "stopped", "inside": left}})
    return 1 if service.worker.failure is not None else 0


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    ours = logging.getLogger("zaya_jax.serve")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)
    uvicorns = logging.getLogger("uvicorn")
    uvicorns.handlers, uvicorns.propagate = [handler], False
    uvicorns.setLevel(logging.WARNING)
