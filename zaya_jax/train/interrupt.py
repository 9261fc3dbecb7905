"""Ctrl-C, SIGTERM and SIGHUP as a request that the loop answers between two steps."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class Request:
    """Whether somebody asked the run to stop, and by which signal."""

    signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextmanager
def requests() -> Iterator[Request]:
    """Collects signals inside the block; a second Ctrl-C interrupts at once.

    A signal that the process was started to ignore (`nohup`) stays ignored. Only the main thread
    can receive signals: in any other this does nothing.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def receive(number: int, frame: FrameType | None) -> None:
        if request and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.signal = signal.Signals(number)
        again = "; once more stops at once" if number == signal.SIGINT else ""
        _tell(f"\n{request.signal.name}: stopping after this step{again}\n")

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [name for name in wanted if signal.getsignal(name) is not signal.SIG_IGN]
    before = {name: signal.signal(name, receive) for name in heard}
    try:
        yield request
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _tell(text: str) -> None:
    """Writes past `sys.stderr`, which the signal may have found in the middle of a write."""
    with suppress(OSError, ValueError):  # closed, or no file at all
        os.write(sys.stderr.fileno(), text.encode())
