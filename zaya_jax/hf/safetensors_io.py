"""Safetensors files, one tensor at a time: checked headers, memory-mapped reads, streamed writes.

A file is 8 bytes (little-endian length N of the header), N bytes of JSON (for each tensor dtype,
shape and byte range), then the data without gaps. Nothing in it is ever executed.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from zaya_jax.errors import UserError

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LARGEST_HEADER = 100_000_000  # the format's own limit


class CheckpointError(UserError):
    """A checkpoint that cannot be read or written; the message says what is wrong with it."""


class Entry(NamedTuple):
    """One tensor of a file; `start` and `stop` count bytes from the first byte of the data."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclasses.dataclass(frozen=True)
class Header:
    """What stands in front of the data.

    raw: the bytes themselves, length included, so that a file can be written again as it was.
    entries: tensors by name, in the order of their data.
    """

    raw: bytes
    entries: Mapping[str, Entry]

    @property
    def data_bytes(self) -> int:
        """Length of the data that follows."""
        return max((entry.stop for entry in self.entries.values()), default=0)


def parse_header(raw: bytes, where: str) -> Header:
    """Checks and parses a header.

    Args:
      raw: the 8 length bytes and the JSON.
      where: the file, for messages.

    Raises:
      CheckpointError: not as long as it says, not JSON, a name twice, an unknown dtype, ranges that
        leave gaps, overlap or do not fit the shape.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise CheckpointError(f"{where}: damaged header: twice in it: {', '.join(twice)}")
        return dict(pairs)

    if int.from_bytes(raw[:8], "little") != len(raw) - 8:
        raise CheckpointError(f"{where}: damaged header: not as long as it says")
    try:
        content = json.loads(raw[8:], object_pairs_hook=unique)
        content.pop("__metadata__", None)
        entries = {name: _entry(name, fields, where) for name, fields in content.items()}
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{where}: damaged header: {error!r}") from error
    # A tensor without elements starts where the next one does.
    entries = dict(sorted(entries.items(), key=lambda item: item[1][2:]))
    end = 0
    for name, entry in entries.items():
        if entry.start != end:
            raise CheckpointError(
                f"{where}: damaged header: {name} starts at byte {entry.start}, expected {end}"
            )
        end = entry.stop
    return Header(raw, entries)


def _entry(name: str, fields: Mapping[str, Any], where: str) -> Entry:
    dtype, shape, (start, stop) = fields["dtype"], fields["shape"], fields["data_offsets"]
    if dtype not in DTYPES:
        raise CheckpointError(f"{where}: {name} has the unknown dtype {dtype!r}")
    sound = isinstance(shape, list) and all(type(n) is int for n in (*shape, start, stop))
    if not sound or min(*shape, start, stop) < 0:
        raise CheckpointError(f"{where}: damaged header: {name}: {dict(fields)}")
    size = math.prod(shape) * DTYPES[dtype].itemsize
    if stop - start != size:
        raise CheckpointError(
            f"{where}: damaged header: {name} {dtype} {shape} takes {size} bytes, "
            f"but its range is {start} to {stop}"
        )
    return Entry(DTYPES[dtype], tuple(shape), start, stop)


def read_header(path: Path) -> Header:
    """The checked header of a file whose size fits it.

    Raises:
      CheckpointError: see `parse_header`; also a truncated file, or one that is none.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = file.read(8)
            if length.startswith(b"version "):
                raise CheckpointError(f"{path}: a Git LFS pointer only: run `git lfs pull`")
            n = int.from_bytes(length, "little")
            if len(length) < 8 or n > min(LARGEST_HEADER, size - 8):
                raise CheckpointError(
                    f"{path}: truncated or no safetensors file: {size} bytes, header of {n}"
                )
            header = parse_header(length + file.read(n), str(path))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    expected = len(header.raw) + header.data_bytes
    if size != expected:
        what = "truncated" if size < expected else "bytes left over at the end"
        raise CheckpointError(f"{path}: {what}: {size} bytes, its header speaks of {expected}")
    return header


class Reader:
    """All tensors of some files, memory-mapped: reading costs page cache, not memory.

    Attributes:
      headers: by file.
      entries: all tensors by name.

    Raises:
      CheckpointError: a damaged file, or a tensor that is in two of them.
    """

    def __init__(self, files: Sequence[Path]):
        self.headers = {file: read_header(file) for file in files}
        self.entries: dict[str, Entry] = {}
        self._file: dict[str, Path] = {}
        self._mapped: dict[Path, np.ndarray] = {}
        twice = []
        for file, header in self.headers.items():
            for name, entry in header.entries.items():
                if name in self.entries:
                    twice.append(f"{name} ({self._file[name].name}, {file.name})")
                self.entries[name], self._file[name] = entry, file
        if twice:
            raise CheckpointError(f"tensors in two files: {', '.join(twice)}")

    def read(self, name: str) -> np.ndarray:
        """The tensor, read-only and backed by the file."""
        file, entry = self._file[name], self.entries[name]
        if file not in self._mapped:
            self._mapped[file] = np.memmap(file, np.uint8, "r")
        offset = len(self.headers[file].raw)
        data = self._mapped[file][offset + entry.start : offset + entry.stop]
        return data.view(np.ndarray).view(entry.dtype).reshape(entry.shape)


def find_files(folder: Path, stem: str) -> list[Path]:
    """The files of a checkpoint: `<stem>.safetensors`, or those of `<stem>.safetensors.index.json`.

    Empty if there is neither.

    Raises:
      CheckpointError: a broken index, a file of it that is missing, or one outside the folder.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        return []
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        outside = sorted(n for n in names if n in ("", ".", "..") or "\0" in n or Path(n).name != n)
    except (ValueError, KeyError, AttributeError, TypeError, OSError) as error:
        raise CheckpointError(f"{index}: not a safetensors index: {error!r}") from error
    if outside:
        raise CheckpointError(f"{index}: refused: leads out of the folder: {', '.join(outside)}")
    files = [folder / name for name in sorted(names)]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise CheckpointError(f"{folder}: incomplete: the index names {', '.join(missing)}")
    return files


# --- Writing --------------------------------------------------------------------------------------


class Spec(NamedTuple):
    """A tensor to be written."""

    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * self.dtype.itemsize


def make_header(specs: Mapping[str, Spec]) -> Header:
    """The header that the safetensors library writes: wide dtypes first, then by name."""
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in sorted(specs.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        start, end = end, end + spec.nbytes
        content[name] = {
            "dtype": NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return parse_header(len(text).to_bytes(8, "little") + text, "new header")


def plan(specs: Mapping[str, Spec], stem: str, max_bytes: float) -> dict[str, Header]:
    """Headers of the files into which the tensors go, by file name.

    Tensors keep their order from file to file; one that is larger than `max_bytes` gets a file of
    its own.
    """
    shards: list[dict[str, Spec]] = [{}]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.nbytes > max_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = spec
        size += spec.nbytes
    n = len(shards)
    if n == 1:
        return {f"{stem}.safetensors": make_header(shards[0])}
    return {
        f"{stem}-{i:05d}-of-{n:05d}.safetensors": make_header(shard)
        for i, shard in enumerate(shards, 1)
    }


def index_of(headers: Mapping[str, Header]) -> str:
    """The text of the index file for several files."""
    entries = [e for header in headers.values() for e in header.entries.values()]
    index = {
        "metadata": {
            "total_parameters": sum(math.prod(entry.shape) for entry in entries),
            "total_size": sum(entry.stop - entry.start for entry in entries),
        },
        "weight_map": {name: file for file, header in headers.items() for name in header.entries},
    }
    return json.dumps(index, indent=2, sort_keys=True) + "\n"


def write_file(path: Path, header: Header, chunks: Iterable[np.ndarray]) -> None:
    """Writes one file.

    Args:
      path: a new file.
      header: says which tensors follow.
      chunks: C-contiguous arrays whose bytes, one behind the other, are the data.

    Raises:
      ValueError: the chunks are not as long as the header says (a bug of the caller).
    """
    written = 0
    with path.open("xb") as file:
        file.write(header.raw)
        for chunk in chunks:
            file.write(chunk.reshape(-1).view(np.uint8).data)
            written += chunk.nbytes
        file.flush()
        os.fsync(file.fileno())
    if written != header.data_bytes:
        raise ValueError(f"{path}: wrote {written} bytes, the header says {header.data_bytes}")
