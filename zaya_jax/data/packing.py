"""Rows of packed examples: what a training step reads.

Rows are made of a plan and the examples it names, when they are asked for. Where a text was cut,
the segment's last target is the token behind the cut: no prediction is lost, only the context of
the tokens after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from zaya_jax.data.example import Example
from zaya_jax.data.plan import Plan
from zaya_jax.data.records import Table


class Batch(NamedTuple):
    """B packed rows of S positions: what the model and the loss get. A pytree of arrays.

    Attributes:
        tokens: [B, S] int32, input ids.
        targets: [B, S] int32, the example's next token where it is learnt; else 0.
        segment_ids: [B, S] int32, 1, 2, ... for the pieces of documents in a row, 0 = padding.
        positions: [B, S] int32, from 0 in every segment.
        loss_weights: [B, S] float32, 1 where there is a target, else 0.
    """

    tokens: np.ndarray
    targets: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    loss_weights: np.ndarray


class Examples(Protocol):
    """Encoded examples by number, as `records.Store` has them, their table and their names."""

    @property
    def table(self) -> Table: ...

    def names(self) -> Iterator[str]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Example: ...


class Rows(Protocol):
    """Rows by number, as `PackedRows` and `JoinedRows` have them."""

    def __len__(self) -> int: ...

    def take(self, rows: np.ndarray) -> Batch:
        """Makes the rows of these numbers; one past the last is a row of padding."""
        ...


@dataclass(frozen=True)
class PackedRows:
    """The rows of a plan, which are made when they are asked for.

    Attributes:
        examples: what the plan was made for.
        plan: which of their tokens lie in which row.
        pad_id: the id at padding positions, which no loss and no segment sees.
    """

    examples: Examples
    plan: Plan
    pad_id: int = 0

    def __len__(self) -> int:
        return len(self.plan)

    def take(self, rows: np.ndarray) -> Batch:
        """Makes rows.

        Args:
            rows: [B] row numbers in any order. A number past the last row gives a row of
                padding, which fills up a batch whose shape must not change.

        Returns:
            The batch, fields of shape [B, S].
        """
        rows = np.asarray(rows, np.int64)
        batch = blank(rows.size, self.plan.sequence_length, self.pad_id)
        read: dict[int, Example] = {}  # rows of a batch may share a long document
        for slot, row in enumerate(rows.tolist()):
            if row < len(self):
                self._fill(Batch(*(field[slot] for field in batch)), row, read)
        return batch

    def all(self) -> Batch:
        """Every row in order, [N, S]: for counting, and for corpora that fit in memory."""
        return self.take(np.arange(len(self)))

    def _fill(self, row: Batch, number: int, read: dict[int, Example]) -> None:
        """Writes a row into fields of shape [S] that are blank."""
        plan = self.plan
        at = segment = position = 0
        for piece in range(plan.rows[number], plan.rows[number + 1]):
            i, start, length = (
                int(field[piece]) for field in (plan.example, plan.start, plan.length)
            )
            if i not in read:
                read[i] = self.examples[i]
            ids, learn = read[i].ids, read[i].learn
            if plan.opens[piece]:
                segment, position = segment + 1, 0
            else:  # what was between the pieces is gone: the one is followed by the other
                row.targets[at - 1] = ids[start] * learn[start]
                row.loss_weights[at - 1] = learn[start]
            stop = at + length
            row.tokens[at:stop] = ids[start : start + length]
            row.segment_ids[at:stop] = segment
            row.positions[at:stop] = np.arange(position, position + length)
            # The targets, shifted by one: one less where the example ends with the piece.
            target = slice(start + 1, start + 1 + length)
            targeted = slice(at, at + ids[target].size)
            row.targets[targeted] = ids[target] * learn[target]
            row.loss_weights[targeted] = learn[target]
            at, position = stop, position + length


@dataclass(frozen=True)
class JoinedRows:
    """The rows of several sources, one source after the other; all of one length S."""

    parts: Sequence[PackedRows]

    @property
    def firsts(self) -> np.ndarray:
        """[parts + 1] int64, the number of each part's first row, and of all rows."""
        return np.cumsum([0, *(len(part) for part in self.parts)])

    def __len__(self) -> int:
        return int(self.firsts[-1])

    def take(self, rows: np.ndarray) -> Batch:
        """As `PackedRows.take`, over all parts."""
        rows, firsts = np.asarray(rows, np.int64), self.firsts
        first = self.parts[0]
        batch = blank(rows.size, first.plan.sequence_length, first.pad_id)
        owner = np.searchsorted(firsts, rows, side="right") - 1
        for number, part in enumerate(self.parts):
            (slots,) = np.nonzero(owner == number)
            for field, values in zip(batch, part.take(rows[slots] - firsts[number]), strict=True):
                field[slots] = values
        return batch


def blank(rows: int, sequence_length: int, pad_id: int) -> Batch:
    """A batch of padding, fields of shape [rows, sequence_length]."""
    shape = rows, sequence_length
    return Batch(
        tokens=np.full(shape, pad_id, np.int32),
        targets=np.zeros(shape, np.int32),
        segment_ids=np.zeros(shape, np.int32),
        positions=np.zeros(shape, np.int32),
        loss_weights=np.zeros(shape, np.float32),
    )


def in_order(rows: Rows, at_once: int = 256) -> Iterator[Batch]:
    """All rows in order, some at a time: for counting."""
    for start in range(0, len(rows), at_once):
        yield rows.take(np.arange(start, min(start + at_once, len(rows))))
