"""Records from where people keep them, hashed so that a run can say what it was trained on.

A source is read as often as need be and always in one order, record by record: none is ever held
as a whole. `survey` reads it once to learn what it is.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import platform
import re
import sysconfig
import tokenize
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zaya_jax.data import recall, split, stdlib_chat, stdlib_docs
from zaya_jax.data.readers import Document, Intake, Record, Rules, read_text, reader

_FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_NOT_LIBRARY = ("test", "tests", "idle_test", "site-packages", "dist-packages")
"""Folders of a Python installation that hold tests, or packages of others."""


@dataclass(frozen=True)
class CorpusInfo:
    """What a run was trained on; plain values, so that it can be written as JSON.

    Attributes:
        source: what was asked for; for `stdlib` with the Python version, because the text
            differs from one patch release to the next.
        documents: records there are, of whatever kind.
        bytes: total length of their contents in UTF-8.
        sha256: of all names and contents in order, see `fingerprint`.
        skipped: documents left out because they were not UTF-8.
        replaced: documents in which bytes that were not UTF-8 became U+FFFD.
        empty: documents left out because there was nothing in them.
        bad: records left out because they were malformed.
    """

    source: str
    documents: int
    bytes: int
    sha256: str
    skipped: int
    replaced: int
    empty: int
    bad: int

    @classmethod
    def join(cls, parts: Sequence[CorpusInfo]) -> CorpusInfo:
        """Several sources as one; a single one stays as it is."""
        if len(parts) == 1:
            return parts[0]
        counts = ("documents", "bytes", "skipped", "replaced", "empty", "bad")
        return cls(
            source=" + ".join(part.source for part in parts),
            sha256=hashlib.sha256(" ".join(part.sha256 for part in parts).encode()).hexdigest(),
            **{name: sum(getattr(part, name) for part in parts) for name in counts},
        )


class Survey(NamedTuple):
    """What is known of a source once it was read.

    Attributes:
        info: the source as a whole.
        places: [N] float64, of the records in order, see `split.place`.
        sizes: [N] int64, bytes of their contents.
    """

    info: CorpusInfo
    places: np.ndarray
    sizes: np.ndarray


class Fingerprint:
    """SHA-256 over names and contents; lengths are hashed too, so borders cannot move."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, record: Record) -> None:
        """Takes in one more record."""
        for part in (record.name, record.exact):
            data = part.encode()
            self._digest.update(len(data).to_bytes(8, "little"))
            self._digest.update(data)

    def hexdigest(self) -> str:
        """The hash of all records so far."""
        return self._digest.hexdigest()


def fingerprint(records: Iterable[Record]) -> str:
    """The hash (hex) of records, see `Fingerprint`."""
    found = Fingerprint()
    for record in records:
        found.add(record)
    return found.hexdigest()


def read(source: str, rules: Rules, intake: Intake | None = None) -> Iterator[Record]:
    """Reads every record of a source, in an order that does not depend on the machine.

    Args:
        source: `stdlib` for the sources of the running Python's standard library without its
            tests; `stdlib-chat` for tasks and answers made of its functions; `stdlib-docs` for the
            prose in it; `recall` for `zaya_jax.data.recall`; `package.module:function` for records
            that a function makes, always the same ones; or a path: a text file, JSON lines
            (`.jsonl`, `.jsonl.gz`, `.jsonl.zst`), Parquet (`.parquet`), or a folder of such files,
            read recursively; hidden files are left out. A single text file is cut at line ends
            into some dozens of documents, so that a part of it can be held out.
        rules: which fields hold text or messages, and what to do with what is wrong. For
            `stdlib`, files declare their encoding and undecodable ones are always skipped.
        intake: counts what was left out; one of these rules.

    Yields:
        Documents that are not empty, conversations, and clozes.

    Raises:
        FileNotFoundError: there is nothing at the path.
        ValueError: what the rules do not skip: text that is not UTF-8, a damaged file, a record
            that is malformed. The message names file and line or byte.
        ImportError: a Parquet file, and pyarrow is not installed.
    """
    intake = intake or Intake(rules)
    for record in _read(source, intake):
        if record.content:
            yield record
        else:
            intake.empty += 1


def _read(source: str, intake: Intake) -> Iterator[Record]:
    if source in BUILT_IN:
        yield from BUILT_IN[source](intake)
        return
    path = Path(source).expanduser()
    if not path.exists() and (made := function(source)) is not None:
        yield from made()
        return
    if not path.exists():
        raise FileNotFoundError(
            f"no corpus at {source!r}: give {', '.join(map(repr, BUILT_IN))}, a file, a folder, or "
            "package.module:function"
        )
    yield from _read_path(path, intake)


def function(source: str) -> Callable[[], Iterable[Any]] | None:
    """What `package.module:function` names; None for a text of another form.

    Raises:
        ValueError: there is no such module or function.
    """
    if not _FUNCTION.fullmatch(source):
        return None
    module, _, name = source.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the corpus {source!r} names no function: {error}") from None


def survey(
    source: str, rules: Rules, advance: Callable[[int], object] = lambda size: None
) -> Survey:
    """Reads a source once, and describes it.

    Args:
        source: as of `read`.
        rules: as of `read`.
        advance: is called with the bytes of each record.

    Raises:
        ValueError: there is no record in the source, or as `read` says.
    """
    intake, hashed = Intake(rules), Fingerprint()
    places, sizes = array("d"), array("q")
    for record in read(source, rules, intake):
        content = record.content
        hashed.add(record)
        places.append(split.place(content))
        sizes.append(len(content.encode()))
        advance(sizes[-1])
    if not places:
        is_folder = Path(source).expanduser().is_dir()
        looked_for = "files that are not hidden" if is_folder else "documents"
        raise ValueError(
            f"the corpus {source!r} has no text: looked for {looked_for} and found {intake.empty} "
            f"empty, {intake.skipped} that are not UTF-8 and {intake.bad} malformed"
        )
    info = CorpusInfo(
        source=f"{source} (Python {platform.python_version()})"
        if source.startswith("stdlib") and source in BUILT_IN
        else source,
        documents=len(places),
        bytes=sum(sizes),
        sha256=hashed.hexdigest(),
        skipped=intake.skipped,
        replaced=intake.replaced,
        empty=intake.empty,
        bad=intake.bad,
    )
    return Survey(info, np.array(places), np.array(sizes, np.int64))


def read_stdlib(intake: Intake) -> Iterator[Document]:
    """The standard library's modules; PEP 263 encodings are honoured."""
    for path, name in _files(Path(sysconfig.get_path("stdlib")), _NOT_LIBRARY):
        if path.suffix != ".py":
            continue
        try:
            with tokenize.open(path) as file:
                yield Document(name, file.read())
        except (SyntaxError, UnicodeDecodeError):
            intake.skipped += 1


BUILT_IN: dict[str, Callable[[Intake], Iterator[Record]]] = {
    "stdlib": read_stdlib,
    "stdlib-chat": lambda intake: stdlib_chat.conversations(read_stdlib(intake)),
    "stdlib-docs": lambda intake: stdlib_docs.documents(read_stdlib(intake)),
    "recall": lambda intake: recall.examples(),
}
"""Sources that are there wherever Python is, by name."""


def _read_path(path: Path, intake: Intake) -> Iterator[Record]:
    """A folder's files one after the other, or a file."""
    if path.is_dir():
        for file, name in _files(path):
            yield from reader(file)(file, name, intake)
        return
    found = reader(path)
    for record in found(path, _name(Path(path.name)), intake):
        if found is read_text and isinstance(record, Document):
            yield from _cut(record)
        else:
            yield record


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
    named = [(path, _name(path.relative_to(root))) for path in found]
    return sorted(named, key=lambda pair: pair[1])


def _name(path: Path) -> str:
    """A path as text that can be stored; bytes of it that are not UTF-8 become `\\xff`."""
    return os.fsencode(path.as_posix()).decode(errors="backslashreplace")


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
