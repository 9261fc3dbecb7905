"""Encoded examples without files."""

from dataclasses import dataclass

import numpy as np

from zaya_jax.data.example import Example
from zaya_jax.data.packing import PackedRows
from zaya_jax.data.plan import PACKINGS
from zaya_jax.data.records import Table


@dataclass(repr=False)  # grain writes out what it maps with, for its statistics: all examples
class Examples:
    """What `records.Store` is, from a list."""

    examples: list[Example]

    @property
    def table(self) -> Table:
        return Table.of(self.examples, [1] * len(self.examples))

    def names(self):
        return map(str, range(len(self.examples)))

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, number):
        return self.examples[number]


def text(ids, eos=1):
    """A document of these ids, closed."""
    closed = np.array([*ids, eos], np.int32)
    return Example(closed, np.ones(closed.size, bool), (), 0)


def pack(examples, length, packing="stream", pad_id=0):
    """Rows of examples."""
    store = Examples(list(examples))
    return PackedRows(store, PACKINGS[packing](store.table, length), pad_id)
