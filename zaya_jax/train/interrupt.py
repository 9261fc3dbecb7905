"""Ctrl-C, SIGTERM and SIGHUP as a request that the loop answers between two steps."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # sweeps use this file, and do without jax
    from zaya_jax.parallel.processes import Alone


class Request:
    """Whether somebody asked the run to stop, and by which signal.

    To look (`if request:`) is something that all processes of a run do together: whichever of them
    hears a signal, all get to know of it at the same look, and stop after the same step.

    Attributes:
      signal: by which all were asked, as of the last look.
      heard: by which this process was.
    """

    def __init__(self, group: Alone | None = None):
        self.signal: signal.Signals | None = None
        self.heard: signal.Signals | None = None
        self._group = group

    def __bool__(self) -> bool:
        if self.signal is None:
            found = self.heard if self._group is None else self._group.asked(self.heard)
            self.signal = None if found is None else signal.Signals(found)
        return self.signal is not None


@contextmanager
def requests(group: Alone | None = None) -> Iterator[Request]:
    """Collects signals inside the block; a second Ctrl-C interrupts at once.

    A signal that the process was started to ignore (`nohup`) stays ignored. Only the main thread
    can receive signals: in any other this does nothing.
    """
    request = Request(group)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def receive(number: int, frame: FrameType | None) -> None:
        if request.heard and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.heard = signal.Signals(number)
        if group is None or group.count == 1:
            request.signal = request.heard
        again = "; once more stops at once" if number == signal.SIGINT else ""
        if group is None or group.leads:
            _tell(f"\n{request.heard.name}: stopping after this step{again}\n")

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
