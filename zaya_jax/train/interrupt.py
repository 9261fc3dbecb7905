"""Ctrl-C, SIGTERM and SIGHUP as a request that the loop answers between two steps."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # sweeps use this file, and do without jax
    from zaya_jax.parallel.processes import Alone


APART = 2.0
"""Seconds between two signals that are two requests."""
GRACE = 5.0
"""Seconds for a process to end by itself, once it was asked a second time."""


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

    Where Python is not to be had, in a compilation or a collective that hangs, a second signal of
    any kind, `APART` seconds after the first, ends the process `GRACE` seconds later.

    A signal that the process was started to ignore (`nohup`) stays ignored. Only the main thread
    can receive signals: in any other this does nothing.
    """
    request = Request(group)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    times: list[float] = []

    def receive(number: int, frame: FrameType | None) -> None:
        if request.heard and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.heard = signal.Signals(number)
        if group is None or group.count == 1:
            request.signal = request.heard
        again = "; once more stops at once" if number == signal.SIGINT else ""
        if repeated(times) is not None:
            again = f"; it ends within {GRACE:g} s"
        if group is None or group.leads:
            _tell(f"\n{request.heard.name}: stopping after this step{again}\n")

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [name for name in wanted if signal.getsignal(name) is not signal.SIG_IGN]
    before = {name: signal.signal(name, receive) for name in heard}
    with _listener({int(name) for name in heard}, times):
        try:
            yield request
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)


def repeated(times: Sequence[float]) -> float | None:
    """When a request was repeated: a scheduler may send several signals at once, which are one."""
    return next((moment for moment in times if moment > times[0] + APART), None)


@contextmanager
def _listener(signals: set[int], times: list[float]) -> Iterator[None]:
    """Hears of signals in a thread of its own, whatever the main thread is stuck in: the C handler
    of Python writes their numbers to a pipe."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    over = threading.Event()

    def listen() -> None:
        while numbers := os.read(reading, 64):
            for number in numbers:
                if number in signals and not over.is_set():
                    times.append(time.monotonic())
            if repeated(times) is not None and not over.wait(GRACE):
                os._exit(128 + numbers[-1])
        os.close(reading)

    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=listen, name="signals", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        signal.set_wakeup_fd(before)
        os.close(writing)


def _tell(text: str) -> None:
    """Writes past `sys.stderr`, which the signal may have found in the middle of a write."""
    with suppress(OSError, ValueError):  # closed, or no file at all
        os.write(sys.stderr.fileno(), text.encode())
