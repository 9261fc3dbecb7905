"""Batches made while the step before them is computed."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor

from zaya_jax.data import Batches
from zaya_jax.data.packing import Batch
from zaya_jax.parallel import ONE_DEVICE, OneDevice


class Feed:
    """Batches by number, each made one ahead by a thread beside.

    Which batch is ahead changes nothing but the time: asked for another one than foreseen, as after
    a rollback, the feed makes that.

    Attributes:
      waited: seconds that the caller spent waiting for batches, ever since.
    """

    def __init__(self, batches: Batches, layout: OneDevice = ONE_DEVICE):
        self.waited = 0.0
        self._batches, self._layout = batches, layout
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._number: int | None = None
        self._ahead: Future[Batch] | None = None

    def __call__(self, number: int) -> Batch:
        """The batch of a number, placed; begins with the next one."""
        began = time.monotonic()
        if self._ahead is None or self._number != number:
            self._ahead = self._thread.submit(self._make, number)
        batch = self._ahead.result()
        self._number = number + 1
        self._ahead = self._thread.submit(self._make, number + 1)
        self.waited += time.monotonic() - began
        return batch

    def _make(self, number: int) -> Batch:
        return self._layout.load(self._batches, number)

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(cancel_futures=True)
