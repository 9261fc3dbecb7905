"""Batches by number: rows of one source or of a weighted mixture, in an order that a seed fixes.

A batch is a pure function of (plan, seed, step): to resume a run takes the step and nothing else,
and it does not matter how many processes make the batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from zaya_jax.data.packing import Batch, JoinedRows, PackedRows, Rows

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
    ):
        """Orders rows.

        Args:
            rows: `PackedRows`, or with weights `JoinedRows`.
            batch_size: B.
            seed: of the order; None for the order of the rows.
            weights: one for each part of the rows, all positive.

        Raises:
            ValueError: B below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.rows = rows
        self.batch_size = batch_size
        if seed is None:
            order = grain.MapDataset.range(len(self) * batch_size)
        elif isinstance(rows, JoinedRows):
            order = _mixed(rows.firsts, seed, weights or [1.0] * len(rows.parts))
        else:
            order = _shuffled(0, len(rows), seed)
        self._batches = order.batch(batch_size).map(rows.take)

    def __len__(self) -> int:
        """Batches in one pass over the rows, a last partial one included."""
        return -(-len(self.rows) // self.batch_size)

    def batch(self, step: int) -> Batch:
        """The batch of a step, from 0; fields of shape [B, S].

        Raises:
            IndexError: a negative step, or without a seed one past the last batch.
        """
        if not 0 <= step < len(self._batches):
            raise IndexError(f"step {step} is not below {len(self._batches)}")
        return self._batches[step]

    def __iter__(self) -> Iterator[Batch]:
        """One pass: batches 0 to `len(self) - 1`."""
        return (self.batch(step) for step in range(len(self)))


def join(parts: Sequence[PackedRows]) -> Rows:
    """The rows of one source as they are, of several one after the other."""
    return parts[0] if len(parts) == 1 else JoinedRows(parts)


def _mixed(firsts: np.ndarray, seed: int, weights: Sequence[float]) -> grain.MapDataset:
    """Row numbers: of source i those from `firsts[i]` to `firsts[i + 1] - 1`."""
    sources = [
        _shuffled(int(start), int(stop), (seed + i * _STRIDE) % 2**32)
        for i, (start, stop) in enumerate(zip(firsts[:-1], firsts[1:], strict=True))
    ]
    return grain.MapDataset.mix(sources, weights)


def _shuffled(start: int, stop: int, seed: int) -> grain.MapDataset:
    return grain.MapDataset.range(start, stop).seed(seed).shuffle().repeat()
