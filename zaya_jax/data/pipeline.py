"""From a source of text to batches: read, split, train the tokenizer, encode, pack, shuffle.

`prepare` does it all and keeps the slow parts in a cache folder. A batch is a pure function of
the seed and the step, so resuming a run takes the step number and nothing else.
"""

from __future__ import annotations

import math
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
from tqdm import tqdm

from zaya_jax.data.cache import atomic_path
from zaya_jax.data.packing import Batch, PackedRows, TokenStream
from zaya_jax.data.sources import (
    CorpusInfo,
    Document,
    fingerprint,
    limit_bytes,
    read_corpus,
    split_documents,
)
from zaya_jax.data.tokenizer import Tokenizer, cached_bpe

_SLOW_SECONDS = 2.0
"""Work that takes longer shows its progress."""


class Batches:
    """Rows as batches of constant shape, by number.

    With a seed: an endless sequence in which every epoch visits all rows once, in a new order;
    a batch may span two epochs. Without: the rows once, in order, the last batch filled up
    with rows of padding (segment 0, weight 0).

    Attributes:
        rows: the packed rows.
        batch_size: B, rows in a batch.
    """

    def __init__(self, rows: PackedRows, batch_size: int, seed: int | None = None):
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.rows = rows
        self.batch_size = batch_size
        order = grain.MapDataset.range(len(rows))
        if seed is None:
            order = grain.MapDataset.range(len(self) * batch_size)
        else:
            order = order.seed(seed).shuffle().repeat()
        self._batches = order.batch(batch_size).map(rows.take)

    def __len__(self) -> int:
        """Batches in one pass over the rows, a last partial one included."""
        return -(-len(self.rows) // self.batch_size)

    def batch(self, step: int) -> Batch:
        """The batch of a step, from 0; fields of shape [B, S].

        Raises:
            IndexError: a negative step, or without a seed one past the last batch.
        """
        if not 0 <= step < len(self._batches):
            raise IndexError(f"step {step} is not below {len(self._batches)}")
        return self._batches[step]

    def __iter__(self) -> Iterator[Batch]:
        """One pass: batches 0 to `len(self) - 1`."""
        return (self.batch(step) for step in range(len(self)))


@dataclass(frozen=True)
class Heldout:
    """Whole unseen documents: to be evaluated in order, and to take prompts from.

    Attributes:
        documents: the texts.
        batches: their rows, in order.
        target_bytes: UTF-8 bytes of all targets. The end-of-sequence id counts none, though
            the model pays for predicting it; a document's first token is not predicted, so
            its bytes are not counted either.
        targets: number of predictions, the end-of-sequence ids included.
    """

    documents: tuple[Document, ...]
    batches: Batches
    target_bytes: int
    targets: int

    def bits_per_byte(self, nats: float) -> float:
        """Converts the summed (not averaged) negative log-likelihood of all targets."""
        return nats / math.log(2) / self.target_bytes


@dataclass(frozen=True)
class PartInfo:
    """Size of the training or the held-out part; `bytes` are of the documents' text."""

    documents: int
    bytes: int
    tokens: int
    rows: int


@dataclass(frozen=True)
class DataInfo:
    """What the data was; `as_json` belongs into the run directory.

    Attributes:
        corpus: everything that was read.
        tokenizer_sha256: of the tokenizer's definition.
        vocab_size: the tokenizer's.
        train: what is trained on.
        heldout: what is evaluated; with a limit on its bytes less than what was held out.
    """

    corpus: CorpusInfo
    tokenizer_sha256: str
    vocab_size: int
    train: PartInfo
    heldout: PartInfo

    def as_json(self) -> dict[str, Any]:
        """Nested dictionaries of numbers and strings."""
        return asdict(self)


class Prepared(NamedTuple):
    """Everything a training run needs of the data."""

    train: Batches
    heldout: Heldout
    tokenizer: Tokenizer
    info: DataInfo


def prepare(
    *,
    source: str,
    tokenizer: str | None,
    vocab_size: int,
    sequence_length: int,
    batch_size: int,
    seed: int,
    heldout_fraction: float,
    heldout_max_bytes: int | None,
    text_field: str,
    on_bad_text: str,
    cache_dir: Path,
) -> Prepared:
    """Makes batches of a source of text.

    The tokenizer is trained on the training part only; what is held out is unseen by it too.

    Args:
        source: `stdlib` or a path, see `sources.read_corpus`.
        tokenizer: a `tokenizer.json` or a folder with one; None to train a BPE.
        vocab_size: the model's; also the size of a BPE trained here.
        sequence_length: S.
        batch_size: B.
        seed: of the order of rows.
        heldout_fraction: share of the documents that is held out.
        heldout_max_bytes: evaluate no more than about so many bytes of them; None for all.
        text_field: JSON field or Parquet column.
        on_bad_text: `strict`, `skip` or `replace`.
        cache_dir: where the tokenizer and the encoded text are kept, by content.

    Raises:
        FileNotFoundError: no source or tokenizer at the path.
        ValueError: as `read_corpus`, `split_documents` and `train_bpe` say; or the tokenizer
            has more ids than the model.
    """
    cache_dir = Path(cache_dir)
    given = None if tokenizer is None else Tokenizer.load(tokenizer)
    if given is not None:
        given.check_fits(vocab_size)
    documents, corpus = read_corpus(source, text_field=text_field, errors=on_bad_text)
    train, heldout = split_documents(documents, heldout_fraction)
    heldout = limit_bytes(heldout, heldout_max_bytes)
    used = given or cached_bpe(
        _progress([document.text for document in train], "training the tokenizer"),
        vocab_size,
        corpus_sha256=fingerprint(train),
        folder=cache_dir,
    )

    def rows_of(part: Sequence[Document]) -> PackedRows:
        return PackedRows(encode(part, used, cache_dir), sequence_length, used.pad_id)

    train_rows, heldout_rows = rows_of(train), rows_of(heldout)
    info = DataInfo(
        corpus=corpus,
        tokenizer_sha256=used.sha256,
        vocab_size=used.vocab_size,
        train=_part_info(train, train_rows),
        heldout=_part_info(heldout, heldout_rows),
    )
    return Prepared(
        train=Batches(train_rows, batch_size, seed),
        heldout=_heldout(heldout, heldout_rows, batch_size, used),
        tokenizer=used,
        info=info,
    )


def encode(documents: Sequence[Document], tokenizer: Tokenizer, cache_dir: Path) -> TokenStream:
    """Encodes documents, or reads what was encoded before of these texts by this tokenizer.

    A cached file that is damaged is made again, with a warning.
    """
    key = f"{fingerprint(documents)[:16]}-{tokenizer.sha256[:16]}"
    file = cache_dir / f"tokens-{key}.npz"
    if file.exists():
        try:
            return _load_stream(file, tokenizer.vocab_size)
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            warnings.warn(f"encoding again: {file} is damaged: {error}", stacklevel=2)
    ids: list[np.ndarray] = []
    # Batches are encoded on all cores; small ones keep the progress line moving.
    texts = [document.text for document in documents]
    starts = range(0, len(texts), 64)
    for start in _progress(starts, "encoding"):
        ids += (np.array(i, np.int32) for i in tokenizer.encode_batch(texts[start : start + 64]))
    stream = TokenStream.of(ids, tokenizer.eos_id, tokenizer.vocab_size)
    with atomic_path(file) as scratch:
        np.savez(scratch, ids=stream.ids, starts=stream.starts)
    return stream


def _load_stream(file: Path, vocab_size: int) -> TokenStream:
    with np.load(file, allow_pickle=False) as arrays:
        stream = TokenStream(arrays["ids"], arrays["starts"])
    if stream.ids.max() >= vocab_size:
        raise ValueError(f"id {stream.ids.max()} in a vocabulary of {vocab_size}")
    return stream


def _heldout(
    documents: Sequence[Document], rows: PackedRows, batch_size: int, tokenizer: Tokenizer
) -> Heldout:
    everything = rows.all()
    targets = everything.targets[everything.loss_weights > 0]
    return Heldout(
        documents=tuple(documents),
        batches=Batches(rows, batch_size),
        target_bytes=int(tokenizer.bytes_per_id[targets].sum()),
        targets=targets.size,
    )


def _part_info(documents: Sequence[Document], rows: PackedRows) -> PartInfo:
    return PartInfo(
        documents=len(documents),
        bytes=sum(document.bytes for document in documents),
        tokens=rows.stream.ids.size,
        rows=len(rows),
    )


def _progress(items: Sequence[Any], what: str) -> Any:
    """The items, with a progress line on a terminal once they take long."""
    return tqdm(items, desc=what, delay=_SLOW_SECONDS, leave=False, disable=None)
