"""Who may come in: a count of sequences under way, and an estimate of when there is room again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zaya_jax.serve.errors import ApiError


class Gate:
    """Counts what is under way, up to a limit.

    Attributes:
      limit: sequences.
      inside: of them, how many are under way.
      closed: whether nobody may come in any more.
    """

    def __init__(
        self,
        limit: int,
        rows: int,
        rejected: Callable[[str], None],
        unit: str = "sequences",
        each: int | None = None,
    ):
        """Args:
        limit: sequences under way, computed or waiting.
        rows: sequences that are computed at once: by it, and by how long requests took, the time
          to the next room is guessed.
        rejected: told why, each time that somebody is sent away.
        unit: what is counted, in messages.
        each: of the limit, what one owner may have; None for all of it.
        """
        self.limit, self.inside, self.closed = limit, 0, False
        self._each, self._of = min(limit, each or limit), Counter[str | None]()
        self._rows, self._rejected, self._unit = rows, rejected, unit
        self._seconds = 1.0  # that a sequence takes: a moving average

    @contextmanager
    def room(
        self, count: int, what: str = "the request", owner: str | None = None
    ) -> Iterator[None]:
        """Takes room for so many sequences, of whoever asks.

        Raises:
          ApiError: 503 if the gate is closed, 429 if there is no room now, 400 if there never is.
        """
        if self.closed:
            self._rejected("draining")
            raise ApiError(503, "the server is stopping", code="stopping", retry_after=30)
        most = self.limit if owner is None else self._each
        if count > most:
            self._rejected("too_large")
            raise ApiError(400, f"{what} needs {count} {self._unit}; the server has {most}")
        inside, limit, whose = self.inside, self.limit, ""
        if inside + count <= limit and owner is not None:
            inside, limit, whose = self._of[owner], self._each, " of this key"
        if inside + count > limit:
            self._rejected("key_full" if whose else "queue_full")
            wait = self.retry_after
            raise ApiError(
                429,
                f"{inside} of {limit} {self._unit}{whose} are under way and {what} needs "
                f"{count}: try again in {wait} s",
                code="queue_full",
                retry_after=wait,
            )
        self.inside += count
        self._of[owner] += count
        begun = time.monotonic()
        try:
            yield
        finally:
            self.inside -= count
            self._of[owner] -= count
            if not self._of[owner]:
                del self._of[owner]
            self._seconds += 0.1 * (time.monotonic() - begun - self._seconds)

    @property
    def retry_after(self) -> int:
        """Whole seconds until a sequence in the middle of the queue may have ended: 1 to 60."""
        return int(min(60, max(1, self._seconds * self.inside / (2 * self._rows))))
