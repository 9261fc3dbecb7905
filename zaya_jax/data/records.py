"""Encoded examples on disk: ArrayRecord shards, and beside each a table of what plans need.

    train-00000-1f0c2a9b77d3.array_record    one record for each example
    train-00000-1f0c2a9b77d3.npz             lengths, turns, think spans, names, bytes, hash

A record stands on its own: a header (tokens n, think spans k, assistant turns; uint32 each), the
ids (n of uint16, or uint32 where the vocabulary needs it), the spans (k of start, stop, turn;
uint32), and, of conversations, the mask of what is learnt (n bits). Little-endian throughout. The
name of a shard ends in a hash of what went into it, so a shard that exists is the right one.
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from zaya_jax.data.cache import atomic_path
from zaya_jax.data.example import Example, Think

SUFFIX = ".array_record"
_HEADER = struct.Struct("<III")
_OPEN_FILES = 256
"""Shards that a store keeps open: far below what systems allow a process, 1024 commonly."""


def id_dtype(vocab_size: int) -> np.dtype:
    """How ids are stored: uint16 where that is wide enough, else uint32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def to_bytes(example: Example, dtype: np.dtype) -> bytes:
    """An example as a record. One with no assistant turns is text, all of which is learnt."""
    parts = [
        _HEADER.pack(len(example), len(example.thinks), example.turns),
        example.ids.astype(dtype).tobytes(),
        np.array(example.thinks, "<u4").tobytes(),
    ]
    if example.turns:
        parts.append(np.packbits(example.learn).tobytes())
    return b"".join(parts)


def from_bytes(data: bytes, dtype: np.dtype) -> Example:
    """What `to_bytes` made a record of.

    Raises:
        ValueError: the record is not of the length that its header says.
    """
    if len(data) < _HEADER.size:
        raise ValueError(f"a record of {len(data)} bytes has no header")
    tokens, spans, turns = _HEADER.unpack_from(data)
    at = _HEADER.size
    ends = at + tokens * dtype.itemsize, 12 * spans, -(-tokens // 8) if turns else 0
    if sum(ends) != len(data):
        raise ValueError(f"a record of {len(data)} bytes, its header says {sum(ends)}")
    thinks = np.frombuffer(data, "<u4", 3 * spans, ends[0]).reshape(-1, 3).tolist()
    learn = np.ones(tokens, bool)
    if turns:
        packed = np.frombuffer(data, np.uint8, offset=ends[0] + ends[1])
        learn = np.unpackbits(packed, count=tokens).astype(bool)
    ids = np.frombuffer(data, dtype, tokens, at).astype(np.int32)
    return Example(ids, learn, tuple(Think(*think) for think in thinks), turns)


@dataclass(frozen=True)
class Table:
    """What is known of n examples without reading their tokens.

    Attributes:
        lengths: [n] int64, tokens.
        turns: [n] int32, assistant turns; 0 for text.
        thinks: [k, 4] int32, example, start, stop and turn of every think span, in order.
        sizes: [n] int64, bytes of the content that was encoded.
        bad: records that could not be encoded and were left out.
    """

    lengths: np.ndarray
    turns: np.ndarray
    thinks: np.ndarray
    sizes: np.ndarray
    bad: int = 0

    def __len__(self) -> int:
        return self.lengths.size

    @classmethod
    def of(cls, examples: Sequence[Example], sizes: Sequence[int], bad: int = 0) -> Table:
        """The table of examples at hand."""
        thinks = [(i, *think) for i, example in enumerate(examples) for think in example.thinks]
        return cls(
            lengths=np.array([len(example) for example in examples], np.int64),
            turns=np.array([example.turns for example in examples], np.int32),
            thinks=np.array(thinks, np.int32).reshape(-1, 4),
            sizes=np.array(sizes, np.int64),
            bad=bad,
        )

    @classmethod
    def join(cls, tables: Sequence[Table]) -> Table:
        """Tables one after the other."""
        offsets = np.cumsum([0, *(len(table) for table in tables)])[:-1]
        return cls(
            lengths=_concatenate([table.lengths for table in tables], np.int64),
            turns=_concatenate([table.turns for table in tables], np.int32),
            thinks=np.concatenate(
                [np.zeros((0, 4), np.int32)]
                + [
                    table.thinks + np.array([offset, 0, 0, 0], np.int32)
                    for table, offset in zip(tables, offsets, strict=True)
                ]
            ),
            sizes=_concatenate([table.sizes for table in tables], np.int64),
            bad=sum(table.bad for table in tables),
        )

    def save(self, file: Path, names: Sequence[str], sha256: str) -> None:
        """Writes the table, and the names and the hash of the examples, whole or not at all."""
        with atomic_path(file) as scratch:
            np.savez(
                scratch,
                lengths=self.lengths,
                turns=self.turns,
                thinks=self.thinks,
                sizes=self.sizes,
                names=np.frombuffer("\0".join(names).encode(), np.uint8),
                bad=np.array(self.bad),
                sha256=np.array(sha256),
            )

    @classmethod
    def load(cls, file: Path) -> Table:
        """Reads a table; raises what `np.load` does if it is damaged."""
        with np.load(file, allow_pickle=False) as arrays:
            fields = {name: arrays[name] for name in ("lengths", "turns", "thinks", "sizes")}
            return cls(**fields, bad=int(arrays["bad"]))


class Shard(NamedTuple):
    """A file of examples.

    Attributes:
        file: its name.
        records: number of examples.
        bytes: its size.
        sha256: hash (hex) of the examples, see `to_bytes`, one after the other.
    """

    file: str
    records: int
    bytes: int
    sha256: str

    @classmethod
    def at(cls, file: Path) -> Shard | None:
        """The shard that was written there; None if there is none, or its table is damaged."""
        if not file.exists():
            return None
        try:
            with np.load(file.with_suffix(".npz"), allow_pickle=False) as arrays:
                records, sha256 = arrays["lengths"].size, str(arrays["sha256"])
        except Exception:  # what a damaged archive raises is not documented
            return None
        return cls(file.name, records, file.stat().st_size, sha256)


def write_shard(
    file: Path, examples: Sequence[Example], names: Sequence[str], table: Table, vocab_size: int
) -> Shard:
    """Writes a shard and its table. The shard comes last: where it is, both are whole."""
    dtype = id_dtype(vocab_size)
    records = [to_bytes(example, dtype) for example in examples]
    sha256 = hashlib.sha256(b"".join(records)).hexdigest()
    table.save(file.with_suffix(".npz"), names, sha256)
    with atomic_path(file) as scratch:
        writer = ArrayRecordWriter(str(scratch), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
    return Shard(file.name, len(records), file.stat().st_size, sha256)


class Store:
    """The examples of a list of shards, read when they are asked for.

    In memory are the table (20 bytes an example, 16 a think span) and, of the shards that were read
    from last, the index of their records; never the tokens.

    Attributes:
        table: of all examples, in order.
        sha256: hash (hex) of the shards' hashes.
        vocab_size: ids are below this.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard], vocab_size: int):
        """Opens shards.

        Raises:
            ValueError: one is missing, or not of the size it had when it was written.
        """
        for shard in shards:
            file = folder / shard.file
            size = file.stat().st_size if file.is_file() else None
            if size != shard.bytes:
                raise ValueError(f"{file} is damaged: {size} bytes instead of {shard.bytes}")
        self.vocab_size = vocab_size
        hashes = " ".join(shard.sha256 for shard in shards)
        self.sha256 = hashlib.sha256(hashes.encode()).hexdigest()
        self.table = Table.join(
            [_load_table((folder / shard.file).with_suffix(".npz"), shard) for shard in shards]
        )
        self._files = [folder / shard.file for shard in shards]
        self._first = np.cumsum([0, *(shard.records for shard in shards)])
        self._readers: OrderedDict[int, ArrayRecordReader] = OrderedDict()  # the last used last
        self._dtype = id_dtype(vocab_size)

    def __len__(self) -> int:
        return len(self.table)

    def names(self) -> Iterator[str]:
        """The examples' names, read from the shards' tables."""
        for file in self._files:
            with np.load(file.with_suffix(".npz"), allow_pickle=False) as arrays:
                if arrays["lengths"].size:
                    yield from arrays["names"].tobytes().decode().split("\0")

    def __getitem__(self, number: int) -> Example:
        """Reads an example.

        Raises:
            IndexError: no such example.
            ValueError: it is damaged.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"example {number} is not below {len(self)}")
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        file = self._files[shard]
        try:
            (data,) = self._reader(shard).read([int(number - self._first[shard])])
            example = from_bytes(data, self._dtype)
        except (RuntimeError, IndexError, ValueError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        if len(example) != self.table.lengths[number] or example.ids.max() >= self.vocab_size:
            raise ValueError(f"{file} is damaged: it does not fit its table or its vocabulary")
        return example

    def _reader(self, shard: int) -> ArrayRecordReader:
        """The open shard; it takes the place of the one that was not used for longest."""
        if shard not in self._readers:
            if len(self._readers) >= _OPEN_FILES:
                self._readers.popitem(last=False)[1].close()
            options = "readahead_buffer_size:0,max_parallelism:0"  # for access at random
            self._readers[shard] = ArrayRecordReader(str(self._files[shard]), options)
        self._readers.move_to_end(shard)
        return self._readers[shard]


def _load_table(file: Path, shard: Shard) -> Table:
    try:
        table = Table.load(file)
    except Exception as error:  # what a damaged archive raises is not documented
        raise ValueError(f"{file} is damaged: {error}") from error
    if len(table) != shard.records:
        raise ValueError(f"{file} is damaged: {len(table)} examples instead of {shard.records}")
    return table


def _concatenate(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays])
