"""A source encoded into a folder of shards: in this process or by workers, and resumable.

    examples.index.json                      what it is of, and the shards in order
    tokenizer/                               that encoded it
    train-00000-1f0c2a9b77d3.array_record    see `zaya_jax.data.records`
    heldout-00000-....array_record

The names of shards say what is in them, so a preparation that was killed goes on with those that
are there, and one of a source that has changed makes anew only what has to be. The index comes
last: a folder that has one is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from zaya_jax.data import split
from zaya_jax.data.cache import atomic_path
from zaya_jax.data.encode import Encoder
from zaya_jax.data.readers import Record, Rules
from zaya_jax.data.records import SUFFIX, Shard, Store, write_shard
from zaya_jax.data.sources import CorpusInfo, Survey, fingerprint, read
from zaya_jax.data.tokenizer import Tokenizer

INDEX, TOKENIZER, VERSION = "examples.index.json", "tokenizer", 2
PARTS = ("train", "heldout")

SHARD_BYTES = 4 << 20
SHARD_RECORDS = 4096
"""A shard is closed once it holds content of so many bytes, or so many records. To change either
changes the hashes of all data, and runs that began before cannot be resumed."""


@dataclass(frozen=True)
class Division:
    """Which records are trained on and which are evaluated.

    Attributes:
        fraction: share of the records that is held out.
        maximum: bytes of held-out records that are kept for evaluation, at most; None for all.
    """

    fraction: float
    maximum: int | None

    def parts(self, survey: Survey) -> np.ndarray:
        """[N] int8 for the records in order: the index in `PARTS`, -1 for neither.

        Raises:
            ValueError: the records cannot be divided, see `split.held_out`.
        """
        held = split.held_out(survey.places, self.fraction)
        part = np.where(held, -1, 0).astype(np.int8)
        (where,) = np.nonzero(held)
        chosen = split.limited(survey.places[where], survey.sizes[where], self.maximum)
        part[where[chosen]] = 1
        return part


@dataclass(frozen=True)
class Index:
    """What a prepared folder says of itself; plain values.

    Attributes:
        corpus: the source, as `survey` found it.
        division: of its records.
        encoder_sha256: what the ids depend on beside the records.
        tokenizer_sha256: of the tokenizer's definition.
        eos_id: closes texts.
        template_sha256: of the chat template.
        vocab_size: ids are below this.
        shards: of each part, in order.
    """

    corpus: CorpusInfo
    division: Division
    encoder_sha256: str
    tokenizer_sha256: str
    eos_id: int
    template_sha256: str
    vocab_size: int
    shards: dict[str, list[Shard]]

    def save(self, folder: Path) -> None:
        """Writes the index."""
        with atomic_path(folder / INDEX) as scratch:
            content = {"version": VERSION, **asdict(self)}
            scratch.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Index:
        """Reads it.

        Raises:
            ValueError: it is damaged or of another version.
        """
        file = folder / INDEX
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if (version := content.pop("version")) != VERSION:
                raise ValueError(f"of version {version}, this is {VERSION}")
            content["corpus"] = CorpusInfo(**content["corpus"])
            content["division"] = Division(**content["division"])
            content["shards"] = {
                part: [Shard(*shard) for shard in content["shards"][part]] for part in PARTS
            }
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is damaged: {error}; prepare the folder again") from error


class Folder(NamedTuple):
    """A prepared folder, open: what it says of itself, and its examples by part.

    Attributes:
        about: the index.
        parts: `train` and `heldout`.
    """

    about: Index
    parts: dict[str, Store]

    @property
    def has_chats(self) -> bool:
        """Whether there is any conversation among the examples."""
        return any(bool(store.table.turns.any()) for store in self.parts.values())


def is_prepared(folder: Path) -> bool:
    """Whether a source was prepared there, to the end."""
    return (folder / INDEX).is_file()


def open_folder(folder: Path) -> Folder:
    """Opens a prepared folder.

    Raises:
        ValueError: it is damaged.
    """
    index = Index.load(folder)
    stores = {part: Store(folder, index.shards[part], index.vocab_size) for part in PARTS}
    return Folder(index, stores)


@dataclass(frozen=True)
class Job:
    """One source to prepare.

    Attributes:
        source: what `sources.read` takes.
        rules: how it is read.
        survey: what it was found to be.
        division: of its records.
        encoder: of them.
    """

    source: str
    rules: Rules
    survey: Survey
    division: Division
    encoder: Encoder

    @property
    def key(self) -> str:
        """A hash (hex) of all that the outcome depends on."""
        parts = self.survey.info.sha256, self.division, self.encoder.sha256
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """Content to be encoded."""
        return int(self.survey.sizes[self.division.parts(self.survey) >= 0].sum())


class _Task(NamedTuple):
    """Records that become a shard."""

    part: str
    file: Path
    records: list[Record]
    bytes: int


def prepare(
    job: Job, folder: Path, workers: int = 0, advance: Callable[[int], object] = lambda size: None
) -> Folder:
    """Encodes a source into a folder, or opens it if that was done before.

    What is there already is kept; of shards that are damaged a warning tells. Another process that
    prepares the same folder is waited for.

    Args:
        job: what to prepare.
        folder: where to.
        workers: processes that encode; 0 for this one, where texts are encoded on all cores. For
            less than a shard none are started.
        advance: is called with the bytes of content that have been dealt with.

    Raises:
        BadRecord: a conversation that cannot be encoded, unless the rules skip it.
        ValueError: the source changed between its survey and now.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        if (found := _finished(job, folder)) is not None:
            advance(job.bytes)
            return found
        shards: dict[str, list[Shard]] = {part: [] for part in PARTS}
        for task, shard in _run(
            _tasks(job, folder), job.encoder, workers if job.bytes > SHARD_BYTES else 0
        ):
            shards[task.part].append(shard)
            advance(task.bytes)
        kept = {shard.file for part in PARTS for shard in shards[part]}
        for file in folder.glob(f"*{SUFFIX}"):  # of an earlier state of the source, or cut off
            if file.name not in kept:
                file.unlink()
                file.with_suffix(".npz").unlink(missing_ok=True)
        for part in PARTS:
            if not any(shard.records for shard in shards[part]):
                raise ValueError(f"the corpus {job.source!r} has no record left in its {part} part")
        job.encoder.tokenizer.save(folder / TOKENIZER)
        index = Index(
            corpus=job.survey.info,
            division=job.division,
            encoder_sha256=job.encoder.sha256,
            tokenizer_sha256=job.encoder.tokenizer.sha256,
            eos_id=job.encoder.tokenizer.eos_id,
            template_sha256=job.encoder.template.sha256,
            vocab_size=job.encoder.tokenizer.vocab_size,
            shards=shards,
        )
        index.save(folder)
        return open_folder(folder)


def _finished(job: Job, folder: Path) -> Folder | None:
    """The folder, if it is whole and of this job; else what hinders its making is gone."""
    if not is_prepared(folder):
        return None
    try:
        found = open_folder(folder)
        index = found.about
        same = index.corpus.sha256, index.division, index.encoder_sha256
        if same == (job.survey.info.sha256, job.division, job.encoder.sha256):
            return found
    except ValueError as error:
        warnings.warn(f"encoding again: {error}", stacklevel=3)
        with suppress(ValueError):
            _remove_damaged(folder, Index.load(folder))
    (folder / INDEX).unlink()
    return None


def _remove_damaged(folder: Path, index: Index) -> None:
    for part in PARTS:
        for shard in index.shards[part]:
            try:
                Store(folder, [shard], index.vocab_size)
            except ValueError:
                (folder / shard.file).unlink(missing_ok=True)


def _tasks(job: Job, folder: Path) -> Iterator[_Task]:
    """Reads the source and groups its records into shards-to-be, each part in its own order."""
    parts = job.division.parts(job.survey)
    salt = job.encoder.sha256
    groups: list[list[Record]] = [[] for _ in PARTS]
    sizes, numbers = [0] * len(PARTS), [0] * len(PARTS)

    def close(part: int) -> _Task:
        group, size = groups[part], sizes[part]
        digest = hashlib.sha256((salt + fingerprint(group)).encode()).hexdigest()
        file = folder / f"{PARTS[part]}-{numbers[part]:05}-{digest[:12]}{SUFFIX}"
        groups[part], sizes[part], numbers[part] = [], 0, numbers[part] + 1
        return _Task(PARTS[part], file, group, size)

    seen = 0
    for record in read(job.source, job.rules):
        if seen == parts.size or job.survey.sizes[seen] != record.bytes:
            raise _changed(job)
        part, size = int(parts[seen]), int(job.survey.sizes[seen])
        seen += 1
        if part < 0:
            continue
        groups[part].append(record)
        sizes[part] += size
        if sizes[part] >= SHARD_BYTES or len(groups[part]) >= SHARD_RECORDS:
            yield close(part)
    if seen != parts.size:
        raise _changed(job)
    for part, group in enumerate(groups):
        if group:
            yield close(part)


def _changed(job: Job) -> ValueError:
    return ValueError(f"the corpus {job.source!r} changed while it was read")


def _run(tasks: Iterable[_Task], encoder: Encoder, workers: int) -> Iterator[tuple[_Task, Shard]]:
    """Does what is not done; gives each task, in order, with its shard."""
    if not workers:
        for task in tasks:
            yield task, Shard.at(task.file) or _encode(task, encoder)
        return
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(encoder,),
    )
    # Read no further ahead than keeps the workers busy: records wait in memory.
    pending: deque[tuple[_Task, Future[Shard] | Shard]] = deque()

    def oldest() -> tuple[_Task, Shard]:
        task, outcome = pending.popleft()
        shard = outcome if isinstance(outcome, Shard) else outcome.result()
        return task._replace(records=[]), shard

    try:
        for task in tasks:
            pending.append((task, Shard.at(task.file) or pool.submit(_work, task)))
            if len(pending) > 2 * workers:
                yield oldest()
        while pending:
            yield oldest()
    except BrokenProcessPool as error:
        raise ValueError(
            "a worker process was killed (out of memory?): give fewer --workers; what is done is "
            "kept, the same command goes on with it"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(task: _Task, encoder: Encoder) -> Shard:
    examples, names, table = encoder(task.records)
    return write_shard(task.file, examples, names, table, encoder.tokenizer.vocab_size)


_encoder: Encoder
"""Of a worker process."""


def _start_worker(encoder: Encoder) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to deal with
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the cores have a worker each
    _encoder = encoder


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next task for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(task: _Task) -> Shard:
    return _encode(task, _encoder)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    with (folder / ".lock").open("a") as file:  # the lock goes with the file
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        for litter in folder.glob(".*-*.*"):  # scratch files of a process that was killed
            litter.unlink(missing_ok=True)
        yield


def tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer that a prepared folder was encoded with."""
    return Tokenizer.load(folder / TOKENIZER)
