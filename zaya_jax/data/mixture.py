"""Batches by number: rows of one source or of a weighted mixture, in an order that a seed fixes.

A batch is a pure function of (plan, seed, step): to resume a run takes the step and nothing else,
and it does not matter how many processes make the batches: each asks for the rows that it needs.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from zaya_jax.data.packing import Batch, JoinedRows, PackedRows, Rows

Schedule = Sequence[tuple[int, Sequence[float]]]
"""Weights of sources, each with the step from which on they hold."""

_STRIDE = 0x9E3779B1
"""Between the seeds of sources; grain counts an epoch's seed up from that of the source."""


class Batches:
    """Rows as batches of constant shape, by number.

    With a seed: an endless sequence in which every epoch visits all rows once, in a new order;
    a batch may span two epochs. With weights, each source goes through its own epochs, and its
    rows take the share of the sequence that its weight has of all weights; the share holds not
    only on average but in every stretch of rows, to within one.

    Without a seed: the rows once, in order, the last batch filled up with rows of padding
    (segment 0, weight 0).

    Attributes:
        rows: the packed rows.
        batch_size: B, rows in a batch.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        seed: int | None = None,
        weights: Sequence[float] | None = None,
        schedule: Schedule = (),
    ):
        """Orders rows.

        Args:
            rows: `PackedRows`, or with weights `JoinedRows`.
            batch_size: B.
            seed: of the order; None for the order of the rows.
            weights: one for each part of the rows; none negative, not all 0.
            schedule: the weights from some steps on, the steps increasing from 1 at the least.

        Raises:
            ValueError: B below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.rows = rows
        self.batch_size = batch_size
        if seed is None:
            orders = {0: grain.MapDataset.range(len(self) * batch_size)}
        elif isinstance(rows, JoinedRows):
            weights = [1.0] * len(rows.parts) if weights is None else weights
            orders = _mixed(rows.firsts, seed, [(0, weights), *schedule], batch_size)
        else:
            orders = {0: _shuffled(0, len(rows), seed)}
        self._firsts = list(orders)  # steps with which stretches of other weights begin
        self._stretches = list(orders.values())  # numbers of rows, one after the other

    def __len__(self) -> int:
        """Batches in one pass over the rows, a last partial one included."""
        return -(-len(self.rows) // self.batch_size)

    def batch(self, step: int, places: np.ndarray | None = None) -> Batch:
        """The batch of a step, from 0; fields of shape [B, S].

        Args:
            step: which.
            places: [b] int, make only the rows at these places, 0 to B - 1, in this order: fields
                of shape [b, S]. None for all of them.

        Raises:
            IndexError: a negative step, or without a seed one past the last batch.
        """
        stretch = max(bisect_right(self._firsts, step) - 1, 0)
        order, number = self._stretches[stretch], step - self._firsts[stretch]
        batches = -(-len(order) // self.batch_size)
        if not 0 <= number < batches:
            raise IndexError(f"step {step} is not below {batches}")
        wanted = np.arange(self.batch_size) if places is None else places
        first = number * self.batch_size
        return self.rows.take(np.array([order[first + int(place)] for place in wanted], np.int64))

    def __iter__(self) -> Iterator[Batch]:
        """One pass: batches 0 to `len(self) - 1`."""
        return (self.batch(step) for step in range(len(self)))


def join(parts: Sequence[PackedRows]) -> Rows:
    """The rows of one source as they are, of several one after the other."""
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def _mixed(
    firsts: np.ndarray, seed: int, stretches: Schedule, batch_size: int
) -> dict[int, grain.MapDataset]:
    """Row numbers of every stretch, by its first step.

    Args:
        firsts: of source i are the rows from `firsts[i]` to `firsts[i + 1] - 1`.
        seed: of the order.
        stretches: their first steps and weights. A source of weight 0 gives no rows.
        batch_size: B.
    """
    sources = [
        _shuffled(int(start), int(stop), (seed + i * _STRIDE) % 2**32)
        for i, (start, stop) in enumerate(zip(firsts[:-1], firsts[1:], strict=True))
    ]
    orders = {}
    drawn = [0] * len(sources)  # rows that each source has given
    for number, (first, weights) in enumerate(stretches):
        active = {i: weight for i, weight in enumerate(weights) if weight}
        rest = [sources[i][drawn[i] :] for i in active]
        orders[first] = grain.MapDataset.mix(rest, list(active.values()))
        if number + 1 < len(stretches):
            rows = (stretches[number + 1][0] - first) * batch_size
            for i, count in zip(active, _drawn(list(active.values()), rows), strict=True):
                drawn[i] += count
    return orders


def _drawn(weights: Sequence[float], rows: int) -> list[int]:
    """How many of the first rows of a mixture each source gives.

    The number of the next row that a source gives is how many it gave before.
    """
    numbered = [
        grain.MapDataset.range(sys.maxsize).map(lambda row, source=i: (source, row))
        for i in range(len(weights))
    ]
    mixed = grain.MapDataset.mix(numbered, weights)
    found: dict[int, int] = {}
    while len(found) < len(weights):
        source, row = mixed[rows]
        found.setdefault(source, row)
        rows += 1
    return [found[i] for i in range(len(weights))]


def _shuffled(start: int, stop: int, seed: int) -> grain.MapDataset:
    return grain.MapDataset.range(start, stop).seed(seed).shuffle().repeat()
