"""From a config's data section to batches: read, divide, train the tokenizer, encode, pack, order.

`prepare` does it all. What is slow is kept: encoded examples lie in the cache folder, or where
`launch.py data --out=DIR` has put them; they do not depend on the length of rows. What a run holds
in memory is a table of the examples' lengths and the packed plan, some tens of bytes an example.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from zaya_jax.config.schema import Data
from zaya_jax.data import chat, folders
from zaya_jax.data.encode import Encoder
from zaya_jax.data.entries import Entry, resolve, subfolder, write_mixture
from zaya_jax.data.folders import Division, Job
from zaya_jax.data.heldout import Heldout
from zaya_jax.data.info import DataInfo, PartInfo, SourceInfo
from zaya_jax.data.mixture import Batches, join
from zaya_jax.data.packing import PackedRows
from zaya_jax.data.plan import PACKINGS
from zaya_jax.data.readers import Conversation, Document, Record, Rules
from zaya_jax.data.sources import Survey, read
from zaya_jax.data.surveys import cached_survey
from zaya_jax.data.tokenizer import Tokenizer, cached_bpe

_SLOW_SECONDS = 2.0
"""Work that takes longer shows its progress."""


class Prepared(NamedTuple):
    """Everything a training run needs of the data."""

    train: Batches
    heldout: Heldout
    tokenizer: Tokenizer
    info: DataInfo


def prepare(
    data: Data,
    *,
    vocab_size: int,
    sequence_length: int,
    batch_size: int,
    seed: int,
    tokenizer: str | None = None,
    out: Path | None = None,
    workers: int = 0,
) -> Prepared:
    """Makes batches of what a config's data section names.

    A tokenizer that is trained here learns from the training parts of all sources only; what is
    held out is unseen by it too. It knows the control tokens of chats, so that a model of texts can
    become one of chats.

    Args:
        data: the section.
        vocab_size: the model's; also the size of a BPE trained here.
        sequence_length: S.
        batch_size: B.
        seed: of the order of rows.
        tokenizer: a `tokenizer.json` or a folder with one, instead of that of the section.
        out: where to put what is prepared, instead of the cache: `data.source` takes that folder.
        workers: processes that encode; 0 for this one.

    Raises:
        FileNotFoundError: no source or tokenizer at a path.
        UserError: the tokenizer lacks the chat template's control tokens, or a template is wrong.
        ValueError: a source cannot be read, divided, encoded or packed as it says (with file and
            line where there are any); the tokenizer has more ids than the model, or is not the one
            that a source was prepared with.
    """
    rules, division = Rules.of(data), Division(data.heldout_fraction, data.heldout_max_bytes)
    cache, entries = Path(data.cache_dir), resolve(data)
    if out is not None and (done := [entry.source for entry in entries if entry.folder]):
        raise ValueError(f"{done[0]!r} is prepared already: name it in the config as it is")
    _check_apart(out or cache, entries)
    opened, surveys, used = _look(data, entries, vocab_size, tokenizer or data.tokenizer)
    template = chat.ChatTemplate.find(data.chat_template, data.tokenizer or tokenizer)
    if data.chat_template is not None:
        _check_template(template, opened)

    def encoded(number: int, entry: Entry, advance: Callable[[int], object]) -> folders.Folder:
        if entry.folder is not None:
            return opened[entry.folder]
        encoder = Encoder(
            used, template, _where(entry.source), skip_bad=data.on_bad_record == "skip"
        )
        job = Job(entry.source, rules, surveys[entry.source], division, encoder)
        folder = cache / f"examples-{job.key[:24]}"
        if out is not None:
            folder = out / subfolder(number, entry.source)
        return folders.prepare(job, folder, workers, advance)

    total = sum(int(found.sizes.sum()) for found in surveys.values())
    with _bar(total, "encoding") as bar:
        found = [encoded(i, entry, bar.update) for i, entry in enumerate(entries)]
    if out is not None:
        write_mixture(out, entries)
    return assemble(data, entries, found, used, sequence_length, batch_size, seed)


def tokenizer_of(data: Data, vocab_size: int, tokenizer: str | None = None) -> Tokenizer:
    """The tokenizer that `prepare` uses; arguments and errors are as there."""
    if given := tokenizer or data.tokenizer:
        return Tokenizer.load(given)
    return _look(data, resolve(data), vocab_size, None).tokenizer


class _Seen(NamedTuple):
    """Sources that were looked at: the prepared ones, the others, and the tokenizer for all."""

    opened: dict[Path, folders.Folder]
    surveys: dict[str, Survey]
    tokenizer: Tokenizer


def _look(data: Data, entries: list[Entry], vocab_size: int, given: str | None) -> _Seen:
    """Opens prepared sources, reads raw ones once, and trains a tokenizer if there is none."""
    rules, division = Rules.of(data), Division(data.heldout_fraction, data.heldout_max_bytes)
    used = None if given is None else Tokenizer.load(given)
    if used is not None:
        used.check_fits(vocab_size)
    opened = {entry.folder: folders.open_folder(entry.folder) for entry in entries if entry.folder}
    used = _agreed(used, opened, division)
    with _bar(None, "reading") as bar:
        surveys = {
            entry.source: cached_survey(entry.source, rules, Path(data.cache_dir), bar.update)
            for entry in entries
            if entry.folder is None
        }
    if used is None:
        used = _trained(surveys, rules, division, vocab_size, Path(data.cache_dir))
    used.check_fits(vocab_size)
    return _Seen(opened, surveys, used)


def assemble(
    data: Data,
    entries: list[Entry],
    found: list[folders.Folder],
    tokenizer: Tokenizer,
    sequence_length: int,
    batch_size: int,
    seed: int,
) -> Prepared:
    """Packs encoded sources into rows and orders them; reads no more than their tables."""
    rows: dict[str, list[PackedRows]] = {part: [] for part in folders.PARTS}
    sources = []
    for entry, (index, stores) in zip(entries, found, strict=True):
        counted, rows_hash = {}, hashlib.sha256()
        for part, store in stores.items():
            plan = PACKINGS[data.packing](store.table, sequence_length)
            rows[part].append(PackedRows(store, plan, tokenizer.pad_id))
            counted[part] = PartInfo.of(store.table, plan)
            rows_hash.update(f"{store.sha256} {plan.sha256} ".encode())
        if not counted["train"].rows:
            raise _nothing_fits(entry.source, sequence_length)
        sources.append(SourceInfo(entry.weight, index.corpus, rows_hash.hexdigest(), **counted))
    names = [source.corpus.source for source in sources]
    if len(set(names)) < len(names):
        raise ValueError(f"data.mixture: a source is there twice, among {', '.join(names)}")
    heldout = {name: part for name, part in zip(names, rows["heldout"], strict=True) if len(part)}
    if not heldout:
        raise _nothing_fits(" + ".join(names), sequence_length)
    weights, *later = zip(*(entry.weights for entry in entries), strict=True)
    steps = [step for step, _ in data.mixture_schedule]
    schedule = tuple(zip(steps, later, strict=True))
    return Prepared(
        train=Batches(join(rows["train"]), batch_size, seed, weights, schedule),
        heldout=Heldout.of(heldout, batch_size, tokenizer),
        tokenizer=tokenizer,
        info=DataInfo(
            tokenizer_sha256=tokenizer.sha256,
            vocab_size=tokenizer.vocab_size,
            packing=data.packing,
            sequence_length=sequence_length,
            sources=tuple(sources),
            schedule=schedule,
        ),
    )


def _nothing_fits(source: str, sequence_length: int) -> ValueError:
    return ValueError(
        f"{source!r}: none of the examples to train on, or none of those held out, fits in "
        f"{sequence_length} tokens, be it without its thinking; raise train.sequence_length"
    )


def _check_apart(place: Path, entries: list[Entry]) -> None:
    """What is written must not be read as text the next time."""
    for entry in entries:
        source, inner = Path(entry.source).expanduser().resolve(), place.resolve()
        if entry.folder is None and source.is_dir() and inner.is_relative_to(source):
            if not any(part.startswith(".") for part in inner.relative_to(source).parts):
                raise ValueError(
                    f"{place} lies in the source {entry.source!r}, and what is written there would "
                    "be read as a part of it: choose a folder elsewhere"
                )


def _agreed(
    used: Tokenizer | None,
    opened: Mapping[Path, folders.Folder],
    division: Division,
) -> Tokenizer | None:
    """The tokenizer that prepared sources ask for, and the one given, which must be the same."""
    for folder, (index, _) in opened.items():
        if index.division != division:
            raise ValueError(
                f"{folder} was prepared with heldout_fraction = {index.division.fraction} and "
                f"heldout_max_bytes = {index.division.maximum}, the config has "
                f"{division.fraction} and {division.maximum}"
            )
        used = used or folders.tokenizer_of(folder)
        if used.sha256 != index.tokenizer_sha256:
            raise ValueError(
                f"{folder} was prepared with another tokenizer (sha256 "
                f"{index.tokenizer_sha256[:12]}, not {used.sha256[:12]}): prepare it with this one"
            )
        if used.eos_id != index.eos_id:
            raise ValueError(
                f"{folder} was prepared with the end-of-sequence id {index.eos_id}, the tokenizer "
                f"says {used.eos_id}: prepare it with this one"
            )
    return used


def _check_template(template: chat.ChatTemplate, opened: Mapping[Path, folders.Folder]) -> None:
    """Prepared chats must be written as the template that the config names writes them."""
    for folder, found in opened.items():
        if found.has_chats and found.about.template_sha256 != template.sha256:
            raise ValueError(
                f"{folder} was prepared with another chat template than {template.name}: prepare "
                "it with this one, or set data.chat_template = None to train on it as it is"
            )


def _trained(
    surveys: Mapping[str, Survey],
    rules: Rules,
    division: Division,
    vocab_size: int,
    cache: Path,
) -> Tokenizer:
    """A BPE of the training parts of raw sources."""

    def texts() -> Iterator[str]:
        size = sum(int(found.sizes.sum()) for found in surveys.values())
        with _bar(size, "training the tokenizer") as bar:
            for source, found in surveys.items():
                parts = division.parts(found)
                for part, record in zip(parts, read(source, rules), strict=True):
                    if part == 0:
                        yield from _texts_of(record)
                    bar.update(record.bytes)

    digest = hashlib.sha256(repr(division.fraction).encode())
    for found in surveys.values():
        digest.update(found.info.sha256.encode())
    return cached_bpe(
        texts(),
        vocab_size,
        corpus_sha256=digest.hexdigest(),
        folder=cache,
        special_tokens=chat.SPECIAL_TOKENS,
    )


def _texts_of(record: Record) -> Iterator[str]:
    """What a tokenizer learns from: the text, the texts in the messages, nothing of a cloze."""
    if isinstance(record, Document):
        yield record.text
    elif isinstance(record, Conversation):
        for message in record.messages:
            yield from (value for value in message.values() if isinstance(value, str))


def _where(source: str) -> str:
    """What precedes a record's name to make it a path."""
    path = Path(source).expanduser()
    return f"{path if path.is_dir() else path.parent}/" if path.exists() else ""


def _bar(total: int | None, what: str) -> tqdm:
    """A progress line on a terminal, with the time left, once it takes long."""
    return tqdm(
        total=total,
        desc=what,
        unit="B",
        unit_scale=True,
        delay=_SLOW_SECONDS,
        leave=False,
        disable=None,
    )
