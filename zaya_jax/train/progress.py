"""The live line: one line redrawn on a terminal, a line every few seconds in a log file."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from typing import TextIO

TERMINAL_SECONDS, LOG_SECONDS = 0.5, 10.0


class Progress:
    """Tells how a run is doing.

    Args:
      steps: of the whole run.
      stream: where to; redrawn in place if it is a terminal.
    """

    def __init__(self, steps: int, stream: TextIO | None = None):
        self._steps = steps
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._drawn = 0
        self._last = 0.0

    def due(self) -> bool:
        """Whether it is time to update."""
        wait = TERMINAL_SECONDS if self._live else LOG_SECONDS
        return time.monotonic() - self._last >= wait

    def update(
        self, step: int, loss: float, entropy: float, tokens_per_second: float, left: float
    ) -> None:
        """Shows the state after `step` steps.

        Args:
          step: steps done.
          loss: nats per token.
          entropy: router-load entropy, mean over layers, 1 at perfect balance.
          tokens_per_second: lately.
          left: seconds to the end.
        """
        line = (
            f"step {step:>{len(str(self._steps))}}/{self._steps}  loss {loss:6.3f}  "
            f"load entropy {entropy:.3f}  {tokens_per_second:>8,.0f} tokens/s  "
            f"{clock(left)} left"
        )
        self.draw(line)

    def draw(self, line: str) -> None:
        """Shows a line in place of the last one."""
        self._last = time.monotonic()
        if self._live:
            self._write("\r" + line.ljust(self._drawn))
            self._drawn = len(line)
        else:
            self._write(line + "\n")

    def say(self, text: str) -> None:
        """Prints a line that stays, above the live one."""
        erase = "\r" + " " * self._drawn + "\r" if self._live and self._drawn else ""
        self._drawn = 0
        self._write(f"{erase}{text}\n")

    def _write(self, text: str) -> None:
        with suppress(OSError):  # the terminal was closed: no reason not to train, or not to save
            self._stream.write(text)
            self._stream.flush()


class Silent(Progress):
    """Tells nothing: of several processes one talks."""

    def __init__(self) -> None:
        super().__init__(0)

    def due(self) -> bool:
        """Never."""
        return False

    def draw(self, line: str) -> None:
        """Shows nothing."""

    def say(self, text: str) -> None:
        """Prints nothing."""


def clock(seconds: float) -> str:
    """`0:09`, `12:34` or `1:23:45`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
