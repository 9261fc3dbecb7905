"""Documents laid end to end and cut into rows: what a training step reads.

The stream of all documents, each closed by the end-of-sequence id, is cut every S tokens, so
nothing is padded but the end of the last row. Where a cut falls inside a document, the row's
last target is the token that opens the next row: no prediction is lost, only the context of
the tokens after the cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """B packed rows of S positions: what the model and the loss get. A pytree of arrays.

    Attributes:
        tokens: [B, S] int32, input ids.
        targets: [B, S] int32, the document's next token; 0 where there is none.
        segment_ids: [B, S] int32, 1, 2, ... for the pieces of documents in a row, 0 = padding.
        positions: [B, S] int32, from 0 in every segment.
        loss_weights: [B, S] float32, 1 where there is a target, else 0.
    """

    tokens: np.ndarray
    targets: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    loss_weights: np.ndarray


@dataclass(frozen=True)
class TokenStream:
    """Documents end to end.

    Attributes:
        ids: [T] integers of any width, every document followed by the end-of-sequence id.
        starts: [documents + 1] int64, where each document begins in `ids`, and T.
    """

    ids: np.ndarray
    starts: np.ndarray

    def __post_init__(self):
        starts, size = self.starts, self.ids.size
        whole = starts.size > 1 and starts[0] == 0 and starts[-1] == size
        if not whole or np.any(np.diff(starts) < 1):
            raise ValueError(
                f"a token stream needs at least one document, each with at least one token: "
                f"{starts.size - 1} documents over {size} tokens"
            )

    @classmethod
    def of(
        cls, documents: Sequence[Sequence[int] | np.ndarray], eos_id: int, vocab_size: int
    ) -> TokenStream:
        """Joins tokenised documents, closing each with `eos_id`."""
        lengths = np.array([len(document) + 1 for document in documents], np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        ids = np.full(starts[-1], eos_id, np.uint16 if vocab_size <= 2**16 else np.int32)
        for start, document in zip(starts[:-1], documents, strict=True):
            ids[start : start + len(document)] = document
        return cls(ids, starts)


@dataclass(frozen=True)
class PackedRows:
    """A token stream seen as rows of S tokens, which are made when they are asked for.

    Attributes:
        stream: T tokens.
        sequence_length: S.
        pad_id: the id at padding positions, which no loss and no segment sees.
    """

    stream: TokenStream
    sequence_length: int
    pad_id: int = 0

    def __post_init__(self):
        if self.sequence_length < 1:
            raise ValueError(f"sequence_length is {self.sequence_length}; it must be at least 1")

    def __len__(self) -> int:
        """Rows that hold at least one token: ceil(T / S)."""
        return -(-self.stream.ids.size // self.sequence_length)

    def take(self, rows: np.ndarray) -> Batch:
        """Makes rows.

        Args:
            rows: [B] row numbers in any order. A number past the last row gives a row of
                padding, which fills up a batch whose shape must not change.

        Returns:
            The batch, fields of shape [B, S].
        """
        ids, starts = self.stream.ids, self.stream.starts
        row_start = np.asarray(rows, np.int64)[:, None] * self.sequence_length
        place = row_start + np.arange(self.sequence_length)
        real = place < ids.size
        place = np.minimum(place, ids.size - 1)

        document = np.searchsorted(starts, place, side="right") - 1
        piece_start = np.maximum(starts[document], row_start)
        has_target = real & (place + 1 < starts[document + 1])
        following = np.minimum(place + 1, ids.size - 1)
        return Batch(
            tokens=np.where(real, ids[place], self.pad_id).astype(np.int32),
            targets=np.where(has_target, ids[following], 0).astype(np.int32),
            segment_ids=np.where(real, document - document[:, :1] + 1, 0).astype(np.int32),
            positions=np.where(real, place - piece_start, 0).astype(np.int32),
            loss_weights=has_target.astype(np.float32),
        )

    def all(self) -> Batch:
        """Every row in order, [N, S]: for counting, and for corpora that fit in memory."""
        return self.take(np.arange(len(self)))
