"""Documents from where people keep text, hashed so that a run can say what it was trained on.

Readers yield a document's name and its undecoded bytes; what happens to bytes that are not
UTF-8 is decided in one place, `_Decoder`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import platform
import sysconfig
import tokenize
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

BAD_TEXT_POLICIES = ("strict", "skip", "replace")

_NOT_LIBRARY = ("test", "tests", "idle_test", "site-packages", "dist-packages")
"""Folders of a Python installation that hold tests, or packages of others."""


class Document(NamedTuple):
    """One text and the name to report it by (a path, or a path and a row number)."""

    name: str
    text: str

    @property
    def bytes(self) -> int:
        """Length of the text in UTF-8."""
        return len(self.text.encode())


@dataclass(frozen=True)
class CorpusInfo:
    """What a run was trained on; plain values, so that it can be written as JSON.

    Attributes:
        source: what was asked for; for `stdlib` with the Python version, because the text
            differs from one patch release to the next.
        documents: how many there are.
        bytes: their total length in UTF-8.
        sha256: of all names and texts in order, see `fingerprint`.
        skipped: documents left out because they were not UTF-8.
        replaced: documents in which bytes that were not UTF-8 became U+FFFD.
        empty: documents left out because there was nothing in them.
    """

    source: str
    documents: int
    bytes: int
    sha256: str
    skipped: int
    replaced: int
    empty: int


class Corpus(NamedTuple):
    """Documents in a fixed order, and their description."""

    documents: list[Document]
    info: CorpusInfo


class Split(NamedTuple):
    """Documents to learn from, and whole documents to be judged by."""

    train: list[Document]
    heldout: list[Document]


def fingerprint(documents: Iterable[Document]) -> str:
    """SHA-256 (hex) over names and texts; lengths are hashed too, so borders cannot move."""
    digest = hashlib.sha256()
    for document in documents:
        for part in document:
            data = part.encode()
            digest.update(len(data).to_bytes(8, "little"))
            digest.update(data)
    return digest.hexdigest()


def read_corpus(source: str, *, text_field: str = "text", errors: str = "strict") -> Corpus:
    """Reads every document of a source, in an order that does not depend on the machine.

    Args:
        source: `stdlib` for the sources of the running Python's standard library without its
            tests; or a path: a text file, JSON lines (`.jsonl`, `.jsonl.gz`), Parquet
            (`.parquet`), or a folder of such files, read recursively; hidden files are left
            out. A single text file is cut at line ends into some dozens of documents, so that
            a part of it can be held out.
        text_field: the JSON field or Parquet column that holds the text.
        errors: what to do with text that is not UTF-8: `strict` raises, `skip` leaves the
            document out, `replace` puts U+FFFD in the place of what is wrong. For `stdlib`,
            files declare their encoding and undecodable ones are always skipped.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: no document in the source, an unknown policy, text that is not UTF-8, a
            damaged file, a JSON line or a Parquet file without the text field. The message
            names file and line or byte.
        ImportError: a Parquet file, and pyarrow is not installed.
    """
    if errors not in BAD_TEXT_POLICIES:
        raise ValueError(f"on_bad_text is {errors!r}; accepted: {', '.join(BAD_TEXT_POLICIES)}")
    decoder = _Decoder(errors)
    if source == "stdlib":
        described = f"stdlib (Python {platform.python_version()})"
        looked_for = "*.py files"
        read = _read_stdlib(Path(sysconfig.get_path("stdlib")), decoder)
    else:
        path = Path(source).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"no corpus at {source!r}: give 'stdlib', a file or a folder")
        described = source
        looked_for = "files that are not hidden" if path.is_dir() else "documents"
        read = _read_path(path, decoder, text_field)

    documents, empty = [], 0
    for document in read:
        if document.text:
            documents.append(document)
        else:
            empty += 1
    if not documents:
        raise ValueError(
            f"the corpus {source!r} has no text: looked for {looked_for} and found "
            f"{empty} empty and {decoder.skipped} that are not UTF-8"
        )
    info = CorpusInfo(
        source=described,
        documents=len(documents),
        bytes=sum(document.bytes for document in documents),
        sha256=fingerprint(documents),
        skipped=decoder.skipped,
        replaced=decoder.replaced,
        empty=empty,
    )
    return Corpus(documents, info)


def split_documents(documents: Sequence[Document], heldout_fraction: float) -> Split:
    """Holds out about a fraction of the documents, whole.

    Where a document goes depends on its text alone: copies of a text stay on one side, and a
    document does not change sides when others are added. If the fraction would leave a side
    empty, the document nearest the border goes there.

    Args:
        documents: the corpus.
        heldout_fraction: expected share of documents held out, between 0 and 1, exclusive.

    Raises:
        ValueError: a fraction out of range, or fewer than two different texts.
    """
    if not 0 < heldout_fraction < 1:
        raise ValueError(f"heldout_fraction is {heldout_fraction}; it must lie between 0 and 1")
    places = [_place(document.text) for document in documents]
    low, high = min(places, default=0.0), max(places, default=0.0)
    if low == high:
        raise ValueError(
            f"{len(documents)} document(s) with fewer than two different texts cannot be split "
            "into a training and a held-out part: give more documents"
        )
    # The border is moved, if at all, just past the lowest or down to the highest place.
    border = min(max(heldout_fraction, low), max(p for p in places if p < high))
    train = [d for d, place in zip(documents, places, strict=True) if place > border]
    heldout = [d for d, place in zip(documents, places, strict=True) if place <= border]
    return Split(train, heldout)


def limit_bytes(documents: Sequence[Document], maximum: int | None) -> list[Document]:
    """Chooses documents that fit in `maximum` bytes together, one at the least.

    They are tried in an order that depends on their texts alone, so that the choice is not one
    of names that begin with A; the chosen ones keep their order. If none fits, the smallest is
    returned; `None` takes them all.
    """
    if maximum is None:
        return list(documents)
    chosen, total = [], 0
    for i in sorted(range(len(documents)), key=lambda i: _place(documents[i].text)):
        if total + documents[i].bytes <= maximum:
            chosen.append(i)
            total += documents[i].bytes
    if not chosen:
        return [min(documents, key=lambda document: document.bytes)]
    return [documents[i] for i in sorted(chosen)]


def _place(text: str) -> float:
    """A number in [0, 1) that looks uniform and depends on the text only."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "little") / 2**48


class _Decoder:
    """Bytes to text under a policy, counting what the policy cost.

    Attributes:
        skipped: documents that were left out.
        replaced: documents that were changed.
    """

    def __init__(self, policy: str):
        self._policy = policy
        self.skipped = 0
        self.replaced = 0

    def __call__(self, data: bytes, where: str, offset: int = 0) -> str | None:
        """Decodes UTF-8; `where` and `offset` (bytes before `data`) are for the message.

        Returns:
            The text, or None if the document is to be left out.
        """
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            if self._policy == "skip":
                self.skipped += 1
                return None
            if self._policy == "replace":
                self.replaced += 1
                return data.decode(errors="replace")
            raise ValueError(
                f"{where}: byte {offset + error.start} (0x{data[error.start]:02x}) is not UTF-8: "
                f"{error.reason}. Convert the file to UTF-8, or set on_bad_text to 'skip' (leave "
                "such documents out) or 'replace' (put U+FFFD there)"
            ) from None


def _read_stdlib(root: Path, decoder: _Decoder) -> Iterator[Document]:
    """The standard library's modules; PEP 263 encodings are honoured."""
    for path, name in _files(root, _NOT_LIBRARY):
        if path.suffix != ".py":
            continue
        try:
            with tokenize.open(path) as file:
                yield Document(name, file.read())
        except (SyntaxError, UnicodeDecodeError):
            decoder.skipped += 1


def _read_path(path: Path, decoder: _Decoder, text_field: str) -> Iterator[Document]:
    """A folder's files one after the other, or a file."""
    if path.is_dir():
        for file, name in _files(path):
            yield from _reader(file)(file, name, decoder, text_field)
        return
    read = _reader(path)
    documents = read(path, path.name, decoder, text_field)
    if read is _read_text:
        documents = (piece for document in documents for piece in _cut(document))
    yield from documents


def _files(root: Path, left_out: Collection[str] = ()) -> list[tuple[Path, str]]:
    """Files below a folder with their names, sorted by name.

    Hidden files and folders, `__pycache__`, and folders named in `left_out` are passed over. Links
    are followed; a folder that is reached twice is read once, under its first name.
    """
    found = []
    passed_over = {"__pycache__", *left_out}
    visited = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if name[0] != "." and name not in passed_over)
        found += [Path(folder, name) for name in files if name[0] != "."]
    named = [(path, path.relative_to(root).as_posix()) for path in found]
    return sorted(named, key=lambda pair: pair[1])


_Reader = Callable[[Path, str, _Decoder, str], Iterator[Document]]


def _reader(path: Path) -> _Reader:
    """The reader for a file, by its name; plain text if no other claims it."""
    for suffix, reader in _READERS.items():
        if path.name.endswith(suffix):
            return reader
    return _read_text


def _read_text(path: Path, name: str, decoder: _Decoder, text_field: str) -> Iterator[Document]:
    del text_field
    text = decoder(path.read_bytes(), str(path))
    if text is not None:
        yield Document(name, text)


def _cut(document: Document) -> Iterator[Document]:
    """Cuts a text at line ends, if possible at blank lines, losing nothing.

    A piece has at least 1/64 of the text, within 1 to 64 KiB (counted in characters); it ends
    at the first blank line after that, or at any line once it is twice as long.
    """
    least = min(max(len(document.text) // 64, 1024), 65536)
    piece: list[str] = []
    size = count = 0
    for line in document.text.splitlines(keepends=True):
        piece.append(line)
        size += len(line)
        if size >= 2 * least or (size >= least and not line.strip()):
            yield Document(f"{document.name}#{count}", "".join(piece))
            piece, size, count = [], 0, count + 1
    if piece:
        yield Document(f"{document.name}#{count}", "".join(piece))


def _read_jsonl(path: Path, name: str, decoder: _Decoder, text_field: str) -> Iterator[Document]:
    open_file = gzip.open if path.name.endswith(".gz") else open
    offset = 0
    try:
        with open_file(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}, line {number}"
                start, offset = offset, offset + len(line)
                text = decoder(line, where, start) if line.strip() else None
                if text is None:
                    continue
                value = _json_field(text, where, text_field)
                # JSON may hold half of a surrogate pair (an escaped \ud800), which no encoding
                # can store: to the policy that is bad text like any other.
                text = decoder(value.encode(errors="surrogatepass"), where)
                if text is not None:
                    yield Document(f"{name}:{number}", text)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file: {error}") from error


def _json_field(line: str, where: str, field: str) -> str:
    """The text of one JSON line."""
    try:
        record = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON that can be read: {error}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: a {type(record).__name__}, not an object")
    if field not in record:
        raise ValueError(
            f"{where}: no field {field!r}; there is {', '.join(map(repr, record)) or 'nothing'}"
        )
    if not isinstance(record[field], str):
        raise ValueError(f"{where}: {field!r} is a {type(record[field]).__name__}, not a string")
    return record[field]


def _read_parquet(path: Path, name: str, decoder: _Decoder, text_field: str) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: not a Parquet file: {error}") from None
    with file:
        columns = file.schema_arrow.names
        if text_field not in columns:
            raise ValueError(f"{path}: no column {text_field!r}; there is {', '.join(columns)}")
        kind = file.schema_arrow.field(text_field).type
        if not any(
            check(kind)
            for check in (
                pyarrow.types.is_string,
                pyarrow.types.is_large_string,
                pyarrow.types.is_binary,
                pyarrow.types.is_large_binary,
            )
        ):
            raise ValueError(f"{path}: column {text_field!r} holds {kind}, not strings")
        row = 0
        for batch in file.iter_batches(columns=[text_field]):
            # As bytes: Parquet does not check that its strings are UTF-8, so the policy must.
            for value in batch.column(0).cast(pyarrow.large_binary()).to_pylist():
                text = decoder(value or b"", f"{path}, row {row}")
                if text is not None:
                    yield Document(f"{name}:{row}", text)
                row += 1


def _refuse_zstd(path: Path, name: str, decoder: _Decoder, text_field: str) -> Iterator[Document]:
    raise ValueError(f"{path}: Zstandard is not supported: decompress it, or use .jsonl.gz")


_READERS: dict[str, _Reader] = {
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_jsonl,
    ".parquet": _read_parquet,
    ".zst": _refuse_zstd,
}
