"""Which tokens lie in which row: the packed plan, made of lengths and think spans alone.

A row is a list of pieces, a piece a range of an example's tokens. The plan is global and
deterministic, so that a row can be made anywhere, from its number and the few examples in it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from zaya_jax.data import best_fit as bins
from zaya_jax.data.example import Example, Think
from zaya_jax.data.records import Table
from zaya_jax.data.trim import ACTIONS, KEPT, trim


@dataclass(frozen=True)
class Plan:
    """N rows of P pieces.

    Attributes:
        sequence_length: S, tokens a row holds at most.
        rows: [N + 1] int64: row r is the pieces `rows[r]` to `rows[r + 1] - 1`.
        example: [P] int64, the example that a piece is of.
        start: [P] int64, its first token in there.
        length: [P] int64, its tokens.
        opens: [P] bool, whether it begins a segment; else it goes on with the piece before.
        counts: what became of the examples: how many were `kept` whole, `trimmed`, `stripped` or
            `dropped` (see `data.trim`), or `cut` into several segments.
    """

    sequence_length: int
    rows: np.ndarray
    example: np.ndarray
    start: np.ndarray
    length: np.ndarray
    opens: np.ndarray
    counts: dict[str, int]

    def __len__(self) -> int:
        return self.rows.size - 1

    @property
    def tokens(self) -> int:
        """Tokens in all rows."""
        return int(self.length.sum())

    @property
    def sha256(self) -> str:
        """Hash (hex) of which tokens lie where."""
        digest = hashlib.sha256(f"{self.sequence_length} {len(self)}".encode())
        for field in (self.rows, self.example, self.start, self.length, self.opens):
            digest.update(field.astype("<i8").tobytes())
        return digest.hexdigest()

    @property
    def efficiency(self) -> float:
        """Share of the rows' positions that hold a token; 1 if there are no rows."""
        return self.tokens / (len(self) * self.sequence_length) if len(self) else 1.0


def stream(table: Table, sequence_length: int) -> Plan:
    """Examples end to end, cut every S tokens: nothing is padded but the end of the last row.

    Args:
        table: of the examples.
        sequence_length: S.

    Raises:
        ValueError: no example, or S below 1.
    """
    _check(table, sequence_length)
    borders = np.concatenate([[0], np.cumsum(table.lengths)])
    total = borders[-1]
    row_starts = np.arange(0, total, sequence_length)
    starts = np.union1d(borders[:-1], row_starts)  # a piece begins where an example or a row does
    example = np.searchsorted(borders, starts, side="right") - 1
    whole = np.bincount(example, minlength=len(table)) == 1
    return Plan(
        sequence_length=sequence_length,
        rows=np.append(np.searchsorted(starts, row_starts), starts.size),
        example=example,
        start=starts - borders[example],
        length=np.diff(np.append(starts, total)),
        opens=np.ones(starts.size, bool),
        counts=_counts(kept=int(whole.sum()), cut=int((~whole).sum())),
    )


def best_fit(table: Table, sequence_length: int) -> Plan:
    """Whole examples, each in one row, by best-fit-decreasing.

    Conversations longer than S are AP-trimmed to S, or dropped. Texts longer than S are cut every
    S tokens, and only the rest is packed with others (Ding et al., arXiv 2404.10830).

    Args:
        table: of the examples.
        sequence_length: S.

    Returns:
        The plan; without rows if all examples are dropped.

    Raises:
        ValueError: no example, or S below 1.
    """
    _check(table, sequence_length)
    items = _whole(table, sequence_length), _trimmed(table, sequence_length)
    # Pieces of all items, item by item, in the order of the examples.
    pieces = np.concatenate([item.pieces for item in items])
    pieces = pieces[np.lexsort((pieces[:, 1], pieces[:, 0]))]
    counts = {name: items[0].counts[name] + items[1].counts[name] for name in items[0].counts}
    rows = np.zeros(1, np.int64)
    if pieces.size:
        first = np.flatnonzero(pieces[:, 3])
        count = np.diff(np.append(first, len(pieces)))
        packed = bins.pack(np.add.reduceat(pieces[:, 2], first), sequence_length)
        # The pieces of the items in the order of the bins.
        count = count[packed.order]
        ends = np.concatenate([[0], np.cumsum(count)])
        order = np.repeat(first[packed.order] - ends[:-1], count) + np.arange(len(pieces))
        pieces, rows = pieces[order], ends[packed.starts]
    return Plan(
        sequence_length=sequence_length,
        rows=rows,
        example=pieces[:, 0],
        start=pieces[:, 1],
        length=pieces[:, 2],
        opens=pieces[:, 3].astype(bool),
        counts=counts,
    )


PACKINGS = {"stream": stream, "best_fit": best_fit}
"""The values of `data.packing`."""


@dataclass(frozen=True)
class _Items:
    """Pieces ([P, 4] int64: example, start, length, opens) and what became of the examples."""

    pieces: np.ndarray
    counts: dict[str, int]


def _whole(table: Table, length: int) -> _Items:
    """Examples that fit as they are, and texts that are cut until they do."""
    chosen = np.flatnonzero((table.lengths <= length) | (table.turns == 0))
    lengths = table.lengths[chosen]
    count = -(-lengths // length)
    ends = np.cumsum(count)
    start = (np.arange(count.sum()) - np.repeat(ends - count, count)) * length
    size = np.minimum(np.repeat(lengths, count) - start, length)
    pieces = np.stack([np.repeat(chosen, count), start, size, np.ones_like(start)], axis=1)
    return _Items(pieces, _counts(kept=int((count == 1).sum()), cut=int((count > 1).sum())))


def _trimmed(table: Table, length: int) -> _Items:
    """Conversations that are too long, AP-trimmed.

    Trimming looks at spans only and takes tokens away, so it is done to the tokens' numbers: what
    is left of them are the ranges to pack.
    """
    pieces, actions = [], dict.fromkeys(ACTIONS, 0)
    borders = np.searchsorted(table.thinks[:, 0], np.arange(len(table) + 1))
    for i in np.flatnonzero((table.lengths > length) & (table.turns > 0)):
        spans = table.thinks[borders[i] : borders[i + 1], 1:].tolist()
        numbers = np.arange(table.lengths[i])
        thinks = tuple(Think(*span) for span in spans)
        shadow = Example(numbers, np.zeros(numbers.size, bool), thinks, int(table.turns[i]))
        example, action = trim(shadow, length)
        actions[action] += 1
        if example is not None:
            first = np.flatnonzero(np.diff(example.ids, prepend=-2) != 1)
            sizes = np.diff(np.append(first, len(example)))
            opens = np.arange(first.size) == 0
            number = np.full(first.size, i)
            pieces.append(np.stack([number, example.ids[first], sizes, opens], axis=1))
    return _Items(
        np.concatenate([np.zeros((0, 4), np.int64), *pieces]),
        _counts(**{action: n for action, n in actions.items() if action != KEPT}),
    )


def _counts(**found: int) -> dict[str, int]:
    return dict.fromkeys((*ACTIONS, "cut"), 0) | found


def _check(table: Table, sequence_length: int) -> None:
    if sequence_length < 1:
        raise ValueError(f"sequence_length is {sequence_length}; it must be at least 1")
    if not len(table):
        raise ValueError("there is no example to pack")
