"""What the data was, in numbers and hashes: for the run directory and for people."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from zaya_jax.data.plan import Plan
from zaya_jax.data.records import Table
from zaya_jax.data.sources import CorpusInfo


@dataclass(frozen=True)
class PartInfo:
    """The training or the held-out part of a source, and what became of it in rows.

    Attributes:
        documents: examples that were encoded.
        bytes: of their content.
        tokens: of theirs.
        bad: records that could not be encoded and were left out.
        kept, trimmed, stripped, dropped, cut: examples, see `plan.Plan.counts`.
        rows: rows of S positions.
        packed: tokens in them.
        efficiency: share of the positions that hold a token.
    """

    documents: int
    bytes: int
    tokens: int
    bad: int
    kept: int
    trimmed: int
    stripped: int
    dropped: int
    cut: int
    rows: int
    packed: int
    efficiency: float

    @classmethod
    def of(cls, table: Table, plan: Plan) -> PartInfo:
        """Counts a part."""
        return cls(
            documents=len(table),
            bytes=int(table.sizes.sum()),
            tokens=int(table.lengths.sum()),
            bad=table.bad,
            **plan.counts,
            rows=len(plan),
            packed=plan.tokens,
            efficiency=plan.efficiency,
        )

    @classmethod
    def total(cls, parts: Iterable[PartInfo]) -> PartInfo:
        """The sum of parts whose rows are of one length."""
        parts = list(parts)
        sums = {name: sum(getattr(part, name) for part in parts) for name in asdict(parts[0])}
        positions = sum(part.packed / part.efficiency for part in parts)
        return cls(**sums | {"efficiency": sums["packed"] / positions})


@dataclass(frozen=True)
class SourceInfo:
    """One source of a run.

    Attributes:
        weight: its share of the training rows, until a schedule changes it.
        corpus: everything that was read.
        rows_sha256: of both parts, the examples and which of their tokens lie in which row.
        train: what is trained on.
        heldout: what is evaluated; with a limit on its bytes less than what was held out.
    """

    weight: float
    corpus: CorpusInfo
    rows_sha256: str
    train: PartInfo
    heldout: PartInfo


@dataclass(frozen=True)
class DataInfo:
    """What the data was; `as_json` belongs into the run directory.

    Attributes:
        tokenizer_sha256: of the tokenizer's definition.
        vocab_size: the tokenizer's.
        packing: `stream` or `best_fit`.
        sequence_length: S.
        sources: in the order of the mixture.
        schedule: from which steps on the sources have other shares, and which.
    """

    tokenizer_sha256: str
    vocab_size: int
    packing: str
    sequence_length: int
    sources: tuple[SourceInfo, ...]
    schedule: tuple[tuple[int, tuple[float, ...]], ...] = ()

    @property
    def rows_sha256(self) -> str:
        """Hash (hex) of what batches are made of; runs in which it is the same had the same data.

        It knows the ids and not where they came from: a renamed file, or code that makes the same
        rows in another way, changes nothing.
        """
        parts: list = [(source.rows_sha256, source.weight) for source in self.sources]
        parts += self.schedule
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def corpus(self) -> CorpusInfo:
        """All sources as one; its hash is that of the only source, or of the sources' hashes."""
        return CorpusInfo.join([source.corpus for source in self.sources])

    @property
    def train(self) -> PartInfo:
        """What is trained on, of all sources."""
        return PartInfo.total(source.train for source in self.sources)

    @property
    def heldout(self) -> PartInfo:
        """What is evaluated, of all sources."""
        return PartInfo.total(source.heldout for source in self.sources)

    def as_json(self) -> dict[str, Any]:
        """Nested dictionaries and lists of numbers and strings; the sources under their names."""
        content = asdict(self)
        names = [source.corpus.source for source in self.sources]
        return content | {
            "rows_sha256": self.rows_sha256,
            "sources": dict(zip(names, content["sources"], strict=True)),
            "schedule": [[step, list(weights)] for step, weights in self.schedule],
            "corpus": asdict(self.corpus),
            "train": asdict(self.train),
            "heldout": asdict(self.heldout),
        }
