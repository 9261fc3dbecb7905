"""Files to records: text, JSON lines (plain, gzip, Zstandard) and Parquet.

Readers yield records under names that find them again (`file:line`, `file:row`). What happens to
bytes that are not UTF-8, and to records that are not what they should be, is decided in one place,
`Intake`; a file that is damaged as a whole always raises.
"""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from zaya_jax.config.schema import BAD_RECORDS, BAD_TEXT, FORMATS, Data
from zaya_jax.data.cloze import Cloze
from zaya_jax.errors import UserError, hint

_CHUNK = 1 << 20
"""Bytes that are decompressed at a time."""


class Document(NamedTuple):
    """One text and the name to report it by (a path, or a path and a line or row number)."""

    name: str
    text: str

    @property
    def content(self) -> str:
        """What is hashed and counted: the text."""
        return self.text

    @property
    def exact(self) -> str:
        """All that ids are made of: the text."""
        return self.text

    @property
    def bytes(self) -> int:
        """Length of the content in UTF-8."""
        return len(self.content.encode())


class Conversation(NamedTuple):
    """Chat messages as the template takes them, and the tools offered; named as documents are."""

    name: str
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None

    @property
    def content(self) -> str:
        """What is hashed and counted: the messages and tools as JSON, keys sorted."""
        return json.dumps([self.messages, self.tools], ensure_ascii=False, sort_keys=True)

    @property
    def exact(self) -> str:
        """All that ids are made of: `content` with the keys in the order that templates see."""
        return json.dumps([self.messages, self.tools], ensure_ascii=False)

    @property
    def bytes(self) -> int:
        """Length of the content in UTF-8."""
        return len(self.content.encode())


Record = Document | Conversation | Cloze


class BadRecord(ValueError):
    """A record that is not what it should be; the message names the file and the line."""


@dataclass(frozen=True)
class Rules:
    """How records are read; the fields are those of `config.Data`."""

    format: str = "auto"
    text_field: str = "text"
    messages_field: str = "messages"
    on_bad_text: str = "strict"
    on_bad_record: str = "fail"

    def __post_init__(self):
        for field, accepted in (
            ("format", FORMATS), ("on_bad_text", BAD_TEXT), ("on_bad_record", BAD_RECORDS)
        ):  # fmt: skip
            value = getattr(self, field)
            if value not in accepted:
                raise ValueError(f"{field} is {value!r}{hint(value, accepted)}")

    @classmethod
    def of(cls, data: Data) -> Rules:
        """The rules of a config."""
        return cls(**{field: getattr(data, field) for field in cls.__dataclass_fields__})


class Intake:
    """Decides about what is wrong, and counts what that cost.

    Attributes:
        rules: how records are read.
        skipped: documents left out because they were not UTF-8.
        replaced: documents in which bytes that were not UTF-8 became U+FFFD.
        empty: documents left out because there was nothing in them.
        bad: records left out because they were malformed.
    """

    def __init__(self, rules: Rules):
        self.rules = rules
        self.skipped = self.replaced = self.empty = self.bad = 0

    def decode(self, data: bytes, where: str, offset: int = 0) -> str | None:
        """Decodes UTF-8; `where` and `offset` (bytes before `data`) are for the message.

        Returns:
            The text, or None if the document is to be left out.

        Raises:
            ValueError: the bytes are not UTF-8 and the rule is `strict`.
        """
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            if self.rules.on_bad_text == "skip":
                self.skipped += 1
                return None
            if self.rules.on_bad_text == "replace":
                self.replaced += 1
                return data.decode(errors="replace")
            raise ValueError(
                f"{where}: byte {offset + error.start} (0x{data[error.start]:02x}) is not UTF-8: "
                f"{error.reason}. Convert the file to UTF-8, or set on_bad_text to 'skip' (leave "
                "such documents out) or 'replace' (put U+FFFD there)"
            ) from None

    def attempt(self, make: Callable[[], Record | None]) -> Record | None:
        """What `make` returns; None for a bad record that the rules skip.

        Raises:
            BadRecord: `make` does, and the rule is `fail`.
        """
        try:
            return make()
        except BadRecord as error:
            if self.rules.on_bad_record == "skip":
                self.bad += 1
                return None
            raise BadRecord(f"{error}. on_bad_record = 'skip' leaves such records out") from None

    def record(self, fields: Mapping[str, Any], name: str, where: str) -> Record | None:
        """The document or conversation in the fields of a JSON object or a Parquet row.

        Raises:
            BadRecord: there is neither, or it is of the wrong type.
        """
        rules = self.rules
        if rules.format == "chat" or rules.format == "auto" and rules.messages_field in fields:
            return conversation(fields, rules.messages_field, name, where)
        field = rules.text_field
        if field not in fields:
            wanted = f"{field!r}" + (f" or {rules.messages_field!r}" * (rules.format == "auto"))
            there = ", ".join(map(repr, fields)) or "nothing"
            raise BadRecord(f"{where}: no field {wanted}; there is {there}")
        value = fields[field]
        if not isinstance(value, str):
            raise BadRecord(f"{where}: {field!r} is a {type(value).__name__}, not a string")
        # JSON may hold half of a surrogate pair (an escaped \ud800), which no encoding can store:
        # to the policy that is bad text like any other.
        text = self.decode(value.encode(errors="surrogatepass"), where)
        return None if text is None else Document(name, text)


def conversation(
    fields: Mapping[str, Any], messages_field: str, name: str, where: str
) -> Conversation:
    """The conversation in a record. What messages have to hold, `data.chat` checks.

    Raises:
        BadRecord: no such field; or the messages, or the tools beside them, are no lists of
            objects, or hold text that cannot be encoded.
    """
    if messages_field not in fields:
        there = ", ".join(map(repr, fields)) or "nothing"
        raise BadRecord(f"{where}: no field {messages_field!r}; there is {there}")
    found: dict[str, list[dict[str, Any]] | None] = {}
    for field in (messages_field, "tools"):
        value = fields.get(field)
        if field == "tools" and value is None:
            found[field] = None
            continue
        if isinstance(value, str):  # as some tables keep nested data
            value = _json(value, f"{where}: {field!r}")
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            kind = type(value).__name__
            raise BadRecord(f"{where}: {field!r} is a {kind}, expected a list of objects")
        try:
            found[field] = [_without_none(item) for item in value]
        except RecursionError:
            raise BadRecord(f"{where}: {field!r} is nested too deep") from None
    result = Conversation(name, found[messages_field] or [], found["tools"])
    try:
        result.content.encode()
    except UnicodeEncodeError:
        raise BadRecord(f"{where}: {messages_field!r} holds half of a surrogate pair") from None
    return result


def read_text(path: Path, name: str, intake: Intake) -> Iterator[Record]:
    """The file as one document."""
    text = intake.decode(path.read_bytes(), str(path))
    if text is not None:
        yield Document(name, text)


def read_jsonl(path: Path, name: str, intake: Intake) -> Iterator[Record]:
    """One record a line; empty lines are passed over.

    Raises:
        ValueError: as the rules say, or a damaged archive.
    """
    offset = 0
    for number, line in enumerate(lines(path), start=1):
        where = f"{path}, line {number}"
        start, offset = offset, offset + len(line)
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)  # as some editors write it
        text = intake.decode(line, where, start) if line.strip() else None
        if text is None:
            continue
        record = intake.attempt(partial(_json_record, text, intake, f"{name}:{number}", where))
        if record is not None:
            yield record


def read_parquet(path: Path, name: str, intake: Intake) -> Iterator[Record]:
    """One record a row; a null text is an empty one.

    Raises:
        ValueError: not a Parquet file, no column as the rules say, or text as `Intake` says.
        ImportError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{path}: reading Parquet needs pyarrow: pip install pyarrow") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from _rows(file, path, name, intake)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file: {error}") from None


def _rows(file: Any, path: Path, name: str, intake: Intake) -> Iterator[Record]:
    """The records of an open Parquet file."""
    import pyarrow

    rules = intake.rules
    columns = file.schema_arrow.names
    chat = rules.format == "chat" or rules.format == "auto" and rules.messages_field in columns
    wanted = rules.messages_field if chat else rules.text_field
    if wanted not in columns:
        raise ValueError(f"{path}: no column {wanted!r}; there is {', '.join(columns)}")
    kind = file.schema_arrow.field(wanted).type
    if not chat and not any(
        check(kind)
        for check in (
            pyarrow.types.is_string,
            pyarrow.types.is_large_string,
            pyarrow.types.is_binary,
            pyarrow.types.is_large_binary,
        )
    ):
        raise ValueError(f"{path}: column {wanted!r} holds {kind}, not strings")
    row = 0
    chosen = [wanted, "tools"] if chat and "tools" in columns else [wanted]
    for batch in file.iter_batches(columns=chosen):
        if not chat:
            # As bytes: Parquet does not check that its strings are UTF-8, so the policy must.
            values = batch.column(0).cast(pyarrow.large_binary()).to_pylist()
            for number, value in enumerate(values, start=row):
                text = intake.decode(value or b"", f"{path}, row {number}")
                if text is not None:
                    yield Document(f"{name}:{number}", text)
        else:
            for number, fields in enumerate(batch.to_pylist(), start=row):
                at = f"{name}:{number}", f"{path}, row {number}"
                record = intake.attempt(partial(conversation, fields, wanted, *at))
                if record is not None:
                    yield record
        row += batch.num_rows


def _refuse_zstd(path: Path, name: str, intake: Intake) -> Iterator[Record]:
    raise ValueError(f"{path}: of Zstandard archives only .jsonl.zst is read: decompress it")


Reader = Callable[[Path, str, Intake], Iterator[Record]]

_READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".jsonl.gz": read_jsonl,
    ".jsonl.zst": read_jsonl,
    ".parquet": read_parquet,
    ".zst": _refuse_zstd,
}


def reader(path: Path) -> Reader:
    """The reader for a file, by its name; plain text if no other claims it."""
    for suffix, found in _READERS.items():
        if path.name.endswith(suffix):
            return found
    return read_text


def _json_record(text: str, intake: Intake, name: str, where: str) -> Record | None:
    fields = _json(text, where)
    if not isinstance(fields, dict):
        raise BadRecord(f"{where}: a {type(fields).__name__}, not an object")
    return intake.record(fields, name, where)


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError alone: a number of 4300 digits
        raise BadRecord(f"{where}: not JSON that can be read: {error}") from None


def _without_none(value: Any) -> Any:
    """Drops absent fields, which tables with nested columns fill with nulls."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _bytes_of(path: Path) -> Iterator[bytes]:
    """The decompressed bytes of a file, in pieces.

    Raises:
        ValueError: a damaged or truncated archive.
    """
    try:
        if path.name.endswith(".zst"):
            yield from _zstd(path)
        else:
            with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
                while piece := file.read(_CHUNK):
                    yield piece
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged gzip file: {error}") from error
    except zstandard.ZstdError as error:
        raise ValueError(f"{path}: damaged Zstandard file: {error}") from error


def _zstd(path: Path) -> Iterator[bytes]:
    """Frame after frame. The library's own reader takes a truncated file for a whole one."""
    frame = None
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            while piece:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(piece)
                piece = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise zstandard.ZstdError("it ends within a frame")


def objects(path: Path) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """The objects of a JSONL file (plain, `.gz` or `.zst`); empty lines are passed over.

    Yields:
        File and line for messages, the line's number from 1, the object.

    Raises:
        UserError: a line that is no object.
        OSError: the file cannot be read.
        ValueError: as `lines`.
    """
    for number, line in enumerate(lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: not JSON: {error}") from None
        if not isinstance(found, dict):
            raise UserError(f"{where}: a {type(found).__name__}; expected an object")
        yield where, number, found


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, plain, `.gz` or `.zst`, with their ends, `\\n` alone being one.

    Raises:
        ValueError: a damaged or truncated archive.
    """
    begun: list[bytes] = []
    for piece in _bytes_of(path):
        *whole, rest = piece.split(b"\n")
        for line in whole:
            begun += line, b"\n"
            yield b"".join(begun)
            begun.clear()
        begun.append(rest)
    if last := b"".join(begun):
        yield last
