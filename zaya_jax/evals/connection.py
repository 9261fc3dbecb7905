"""HTTP whose connections must be made soon, while an answer may take as long as it likes.

urllib has one timeout for both, and Markovian RSA answers after hours without a byte before.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import socket
import threading
import urllib.request
import weakref
from typing import Any

CONNECT_SECONDS = 30.0
"""Most seconds until a server has taken a connection."""
PROBE_SECONDS = 60
"""Between two questions to the other machine, while nothing comes, whether it is still there."""
PROBES = 5
"""Unanswered ones in a row, after which it is not."""


_connected: weakref.WeakSet[socket.socket] = weakref.WeakSet()
_lock = threading.Lock()


def hang_up() -> None:
    """Ends whatever is under way in this process, as if the other side had gone."""
    with _lock:
        under_way = list(_connected)
    for connected in under_way:
        with contextlib.suppress(OSError):  # it is closed already
            connected.shutdown(socket.SHUT_RDWR)


@functools.cache
def opener() -> urllib.request.OpenerDirector:
    """What opens URLs; its `timeout` is the wait for an answer alone, None for any."""
    return urllib.request.build_opener(_Handler, _SecureHandler)


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        answer, self.timeout = self.timeout, CONNECT_SECONDS
        super().connect()
        _wait(self.sock, answer)


class _SecureConnection(http.client.HTTPSConnection):
    def connect(self) -> None:
        answer, self.timeout = self.timeout, CONNECT_SECONDS
        super().connect()  # with TLS's handshake
        _wait(self.sock, answer)


class _Handler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Connection, request)


class _SecureHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_SecureConnection, request)


def _wait(connected: Any, seconds: float | None) -> None:
    """Sets what is waited for an answer, which `hang_up` ends; a machine that is gone is noticed
    without a limit, too."""
    with _lock:
        _connected.add(connected)
    connected.settimeout(seconds)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", PROBE_SECONDS),
        ("TCP_KEEPINTVL", PROBE_SECONDS),
        ("TCP_KEEPCNT", PROBES),
    ):
        if (option := getattr(socket, name, None)) is not None:  # not everywhere
            connected.setsockopt(socket.IPPROTO_TCP, option, value)
