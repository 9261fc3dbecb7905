"""Ends a process that cannot go on: another one was lost, or nothing has moved for too long.

Collectives wait for all processes, without an end. Two threads see to it that there is one, beside
the connections of `zaya_jax.parallel.lifeline`:

* one says every now and then, in the key-value store that process 0 keeps for all, that this
  process lives. That of process 0 looks who has not said so for `lost` seconds;
* one waits for the word that a process has failed, and then ends this one. It also looks at the
  time since the last `beat`: after `hung` seconds without one it writes the stacks of all threads.

A process that ends so writes one line that says why, and has the status `LOST`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from zaya_jax.errors import AGAIN

LOST = AGAIN
"""The exit status of a process that was well itself."""
_FAILED, _ALIVE = "zaya/failed", "zaya/alive/"
_GRACE = 15.0
"""Seconds that a process which has failed may take to tidy up; and after which the stacks are
written by a C thread, if no Python thread can run."""
_LOOK = 1.0
"""Seconds between two looks at the clock."""
_START, _START_LEAST = 4, 7200.0
"""So many times as long as a step may the start take, and so many seconds in any case: data are
prepared, a checkpoint is read, programs are compiled."""


class _Word(NamedTuple):
    """That a process has failed.

    Attributes:
      message: why.
      status: the exit status for those that hear it.
      dump: whether they are to write their stacks.
    """

    message: str
    status: int = LOST
    dump: bool = False


class Watch:
    """The two threads of a process.

    Args:
      client: of the key-value store; None if this is the only process, of which only `hung` counts.
      index, count: of the processes.
      lost: seconds of silence after which a process is taken for lost.
      hung: seconds without a `beat` after which this process is taken for hung, `_START` times as
        many before the first one, and `_START_LEAST` at least; 0 for never.
      end: ends the process; for tests.
    """

    def __init__(
        self,
        client: Any,
        index: int,
        count: int,
        lost: float,
        hung: float = 0.0,
        end: Callable[[int], Any] = os._exit,
    ):
        self._client, self._index, self._count = client, index, count
        self._lost, self._hung, self._end = lost, hung, end
        self._over = threading.Event()
        self._ended = threading.Lock()
        self._beat: float | None = None
        self._began = time.monotonic()
        self._start = max(_START * hung, _START_LEAST)
        self._heard = time.monotonic()  # from process 0
        loops = [self._listen] if client is None else [self._listen, self._live]
        if hung:
            faulthandler.dump_traceback_later(self._start + _GRACE, exit=True, file=2)
        self._threads = [threading.Thread(target=loop, daemon=True) for loop in loops]
        for thread in self._threads:
            thread.start()

    def beat(self) -> None:
        """Something has moved: the time that may pass without anything moving begins anew."""
        now = time.monotonic()
        if self._hung and (self._beat is None or now - self._beat > _LOOK):
            self._beat = now
            faulthandler.dump_traceback_later(self._hung + _GRACE, exit=True, file=2)

    def broken(self, index: int) -> None:
        """The connection to a process has broken; see `zaya_jax.parallel.lifeline`."""
        word = _Word(f"process {index} of {self._count} was lost: its connection broke")
        if index:  # it may have said why
            self._over.wait(2 * _LOOK)
            if self._over.is_set():
                return
            self._publish(word)
            time.sleep(2 * _LOOK)
        self._stop(word)

    def tell(self, message: str, status: int = LOST) -> None:
        """Tells all processes that this one has failed, if none has before.

        From now on it has some seconds left to end by itself.

        Args:
          message: why.
          status: the exit status for the others.
        """
        self._ended.acquire(blocking=False)  # not by the threads, before it has said what it has
        self._publish(_Word(message, status))
        timer = threading.Timer(_GRACE, self._end, [1])
        timer.daemon = True
        timer.start()
        if self._index == 0:  # which keeps the store: the others are to read this
            time.sleep(2 * _LOOK)

    def wait_for_word(self) -> None:
        """Waits as long as it takes to find out that another process was lost, if one was.

        A broken connection is noticed at once by those that talk over it; whose end it was is known
        only when the silence of that process has lasted.
        """
        if self._client is not None:
            time.sleep(self._lost + 4 * _LOOK)

    def close(self) -> None:
        """Ends the threads."""
        self._over.set()
        if self._hung:
            faulthandler.cancel_dump_traceback_later()
        for thread in self._threads:
            thread.join()

    def _publish(self, word: _Word) -> None:
        if self._client is not None:
            with suppress(Exception):  # one was told already, or there is nobody left to tell
                self._client.key_value_set(_FAILED, json.dumps(word._asdict()))

    def _listen(self) -> None:
        """Until the end: waits for the word that a process failed, and looks at the clock."""
        while not self._over.is_set():
            word = self._next_word()
            if word is None and self._client is not None and self._silence() > self._lost:
                word = _Word(f"process 0 of {self._count} has not answered for {self._lost:g} s")
            if word is None and (why := self._stuck()):
                who = "this process" if self._client is None else f"process {self._index}"
                word = _Word(f"{who} {why}", dump=True)
                self._publish(word)
            if word is not None and not self._over.is_set():
                self._stop(word)
                return

    def _stuck(self) -> str:
        """What this process has not done for too long; "" if it moves, or nobody is to look."""
        now = time.monotonic()
        if not self._hung:
            return ""
        if self._beat is None:
            if now - self._began < self._start:
                return ""
            return (
                f"has not begun its first step for {self._start:g} s (a start may take {_START} "
                "times --watchdog_seconds, and two hours in any case)"
            )
        late = now - self._beat > self._hung
        return f"has not finished a step for {self._hung:g} s" if late else ""

    def _silence(self) -> float:
        """Seconds since process 0 has answered."""
        return time.monotonic() - self._heard

    def _next_word(self) -> _Word | None:
        """What a process that failed has said; None if none other has within a second."""
        if self._client is None:
            self._over.wait(_LOOK)
            return None
        try:
            told = json.loads(self._client.blocking_key_value_get(_FAILED, int(_LOOK * 1000)))
        except Exception as error:  # jax has no class of its own for this
            if "DEADLINE_EXCEEDED" in str(error):
                return None
            return _Word(f"process 0 of {self._count} was lost")
        return _Word(**told)

    def _live(self) -> None:
        """Until the end: says that this process lives; process 0 looks who does."""
        said: dict[int, str] = {}
        since = dict.fromkeys(range(self._count), time.monotonic())
        number, pause = 0, min(self._lost / 5, 5.0)
        while not self._over.wait(pause):
            number += 1
            with suppress(Exception):  # `_listen` notices
                own = f"{_ALIVE}{self._index}"
                self._client.key_value_set(own, str(number), allow_overwrite=True)
                self._heard = now = time.monotonic()
                if self._index:
                    continue
                for key, value in self._client.key_value_dir_get(_ALIVE):
                    index = int(key.removeprefix(_ALIVE))
                    if said.get(index) != value:
                        said[index], since[index] = value, now
                silent = [index for index, when in since.items() if now - when > self._lost]
                if silent:
                    word = _Word(
                        f"process {', '.join(map(str, silent))} of {self._count} was lost: nothing "
                        f"has been heard of it for {self._lost:g} s"
                    )
                    self._publish(word)
                    time.sleep(2 * _LOOK)
                    self._stop(word)
                    return

    def _stop(self, word: _Word) -> None:
        """Says why, and ends the process."""
        if not self._ended.acquire(blocking=False):
            return
        who = "" if self._client is None else f"process {self._index} ends: "
        again = ". The same command goes on from the last checkpoint" * (word.status == LOST)
        write(f"\nerror: {who}{word.message}{again}\n")
        if word.dump:
            # First: the list of all ends after a hundred, and the main thread is its last.
            if main := sys._current_frames().get(threading.main_thread().ident or 0):
                write("The main thread:\n" + "".join(traceback.format_stack(main)))
            write("The stacks of all threads:\n")
            faulthandler.dump_traceback(file=2, all_threads=True)
        self._end(word.status)


def write(text: str) -> None:
    """Writes past `sys.stderr`, whose lock another thread may hold for ever."""
    with suppress(OSError, ValueError):
        os.write(2, text.encode())
