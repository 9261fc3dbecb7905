"""Best-fit-decreasing packing of whole examples (Ding et al., arXiv 2404.10830; report IV-A).

The longest example comes first; each goes to the bin that it fills best, the one with the least
room that suffices. Of several with the same room, the one that has had this room for longest. If
none suffices, a new bin is opened.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

_WORD = 512
"""Bits of a word of `_Rooms`: near the square root of the largest capacities."""


@dataclass(frozen=True)
class Bins:
    """Which examples lie in which bin, in the order of the bins' opening.

    Attributes:
        order: [n] int64, the numbers of all examples, bin by bin; in a bin, as they were put in.
        starts: [bins + 1] int64: bin b holds `order[starts[b]:starts[b + 1]]`.
    """

    order: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return self.starts.size - 1

    def __getitem__(self, bin: int) -> np.ndarray:
        """Numbers of the examples in a bin, from 0."""
        if not 0 <= bin < len(self):
            raise IndexError(f"bin {bin} is not below {len(self)}")
        return self.order[self.starts[bin] : self.starts[bin + 1]]

    def loads(self, lengths: np.ndarray) -> np.ndarray:
        """Tokens in each bin, [bins] int64."""
        total = np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int64)[self.order])])
        return np.diff(total[self.starts])


def pack(lengths: np.ndarray, capacity: int) -> Bins:
    """Packs examples into bins; a pure function of its arguments.

    Examples of one length are taken in their own order. A bin that has been chosen for a length
    remains the best one for as long as another of that length fits, since its room only shrinks:
    so equal lengths are dealt out in runs, one step a bin and not one an example.

    Args:
        lengths: [n] integers from 1 to `capacity`, in tokens.
        capacity: tokens that a bin holds.

    Raises:
        ValueError: a length that does not fit (trim or drop before packing), or none at all.
    """
    lengths = np.asarray(lengths, np.int64)
    if capacity < 1:
        raise ValueError(f"capacity is {capacity} tokens; it must be at least 1")
    if lengths.ndim != 1:
        raise ValueError(f"lengths have shape {lengths.shape}; they must be a vector")
    if (wrong := np.flatnonzero((lengths < 1) | (lengths > capacity))).size:
        raise ValueError(
            f"example {wrong[0]} has {lengths[wrong[0]]} tokens; a bin takes 1 to {capacity} "
            f"({wrong.size} of {lengths.size} examples do not fit)"
        )
    decreasing = np.argsort(-lengths, kind="stable")
    kinds, counts = np.unique(lengths, return_counts=True)

    rooms = _Rooms(capacity)
    run_bins: list[int] = []
    run_sizes: list[int] = []
    opened = 0
    for length, left in zip(kinds[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while left:
            room, bin = rooms.take(length) or (capacity, opened)
            opened += bin == opened
            run = min(left, room // length)
            left -= run
            run_bins.append(bin)
            run_sizes.append(run)
            if room > run * length:
                rooms.add(room - run * length, bin)

    bin_of = np.repeat(np.array(run_bins, np.int64), run_sizes)
    sizes = np.bincount(bin_of, minlength=opened)
    return Bins(
        order=decreasing[np.argsort(bin_of, kind="stable")],
        starts=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
    )


class _Rooms:
    """Bins by the room that they have left: first in, first out, and the least that suffices.

    Which rooms occur is noted in a set of bits in two levels, so that the next larger one is
    found in a few steps on whole words.
    """

    def __init__(self, capacity: int):
        self._bins: dict[int, deque[int]] = {}
        self._words = [0] * (capacity // _WORD + 1)
        self._summary = 0  # bit w: some bit of word w is set

    def add(self, room: int, bin: int) -> None:
        """Notes that a bin has so much room left, at least 1."""
        if room in self._bins:
            self._bins[room].append(bin)
            return
        self._bins[room] = deque([bin])
        word, bit = divmod(room, _WORD)
        self._words[word] |= 1 << bit
        self._summary |= 1 << word

    def take(self, length: int) -> tuple[int, int] | None:
        """Takes out the bin with the least room for `length`: (room, bin), or None."""
        word, bit = divmod(length, _WORD)
        found = self._words[word] >> bit
        if found:
            room = length + _lowest(found)
        elif later := self._summary >> (word + 1):
            word += 1 + _lowest(later)
            room = word * _WORD + _lowest(self._words[word])
        else:
            return None
        waiting = self._bins[room]
        bin = waiting.popleft()
        if not waiting:
            del self._bins[room]
            self._words[word] ^= 1 << (room % _WORD)
            if not self._words[word]:
                self._summary ^= 1 << word
        return room, bin


def _lowest(bits: int) -> int:
    """Number of the lowest bit that is set."""
    return (bits & -bits).bit_length() - 1
