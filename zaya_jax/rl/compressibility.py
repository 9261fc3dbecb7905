"""A canary for loops: text that compresses too well says the same over and over (report IV).

The token ids of a rollout go through LZ77 with a window of 1,024 bytes, a chunk at a time, as they
come. A chunk that shrinks below 5% of its size is a loop; its rollout gets no task reward. How many
loops are found depends on the chunk: 128 ids of 4 bytes at level 1 find nearly all periods up to
128 tokens, and nothing sees beyond 190, which is as far as the window looks back.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from zaya_jax.errors import UserError

FLUSH_BYTES = 5
"""What ends a chunk in the compressed stream, whatever was in it."""


@dataclasses.dataclass(frozen=True)
class Compressibility:
    """How the canary listens. The report gives threshold, window, level and flush; the chunk and
    the width of an id are ours.

    Attributes:
      chunk: C, ids compressed at a time.
      threshold: a ratio below it is a loop.
      window_bits: log2 of the window in bytes.
      level: of zlib.

    Raises:
      UserError: a value outside its range.
    """

    chunk: int = 128
    threshold: float = 0.05
    window_bits: int = 10
    level: int = 1

    def __post_init__(self):
        accepted = {
            "chunk": (self.chunk >= 1, "at least 1"),
            "threshold": (0 <= self.threshold <= 1, "0 to 1"),
            "window_bits": (9 <= self.window_bits <= 15, "9 to 15"),
            "level": (1 <= self.level <= 9, "1 to 9"),
        }
        for name, (holds, expected) in accepted.items():
            if not holds:
                raise UserError(f"{name} = {getattr(self, name)}: expected {expected}")


class Canary:
    """Listens to one rollout as it is generated.

    The last chunk takes in a shorter rest, so a chunk is compressed when another whole one has
    come behind it. Pushing tokens one by one or all at once is the same.

    Attributes:
      ratios: of the chunks so far, compressed bytes to raw bytes.
    """

    def __init__(self, settings: Compressibility = Compressibility()):
        self._settings = settings
        self._stream = zlib.compressobj(settings.level, zlib.DEFLATED, -settings.window_bits)
        self._pending: list[int] = []
        self.ratios: list[float] = []

    @property
    def loops(self) -> bool:
        """Whether any chunk so far is a loop."""
        return any(ratio < self._settings.threshold for ratio in self.ratios)

    def push(self, ids: Sequence[int]) -> bool:
        """Takes tokens; returns `loops`, so that a generation can be ended early."""
        self._pending.extend(int(i) for i in ids)
        size = self._settings.chunk
        while len(self._pending) >= 2 * size:
            self._compress(self._pending[:size])
            del self._pending[:size]
        return self.loops

    def close(self) -> bool:
        """The rollout is complete; returns `loops`."""
        if self._pending:
            self._compress(self._pending)
            self._pending = []
        return self.loops

    def _compress(self, ids: list[int]) -> None:
        raw = np.asarray(ids, "<u4").tobytes()
        data = self._stream.compress(raw) + self._stream.flush(zlib.Z_SYNC_FLUSH)
        self.ratios.append(max(0, len(data) - FLUSH_BYTES) / len(raw))


def ratios(ids: Sequence[int], settings: Compressibility = Compressibility()) -> list[float]:
    """Of the chunks of a whole rollout; [] if it is empty."""
    canary = Canary(settings)
    canary.push(ids)
    canary.close()
    return canary.ratios


def loops(ids: Sequence[int], settings: Compressibility = Compressibility()) -> bool:
    """Whether a rollout repeats itself: its task reward is then 0, before any advantage."""
    return any(ratio < settings.threshold for ratio in ratios(ids, settings))
