"""What is evaluated, and in which unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from zaya_jax.data.mixture import Batches, join
from zaya_jax.data.packing import PackedRows, in_order
from zaya_jax.data.readers import Document
from zaya_jax.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class Heldout:
    """Whole unseen documents: to be evaluated in order, and to take prompts from.

    Attributes:
        batches: their rows, in order.
        target_bytes: UTF-8 bytes of all targets. The end-of-sequence id counts none, though
            the model pays for predicting it; a document's first token is not predicted, so
            its bytes are not counted either.
        targets: number of predictions, the end-of-sequence ids included.
        tokenizer: of the targets.
        parts: the rows, source by source.
        sources: the same for each source alone that has held-out rows.
    """

    batches: Batches
    target_bytes: int
    targets: int
    tokenizer: Tokenizer
    parts: tuple[PackedRows, ...]
    sources: Mapping[str, Heldout] = field(default_factory=dict)

    @classmethod
    def of(cls, parts: Mapping[str, PackedRows], batch_size: int, tokenizer: Tokenizer) -> Heldout:
        """Counts the targets of the sources' rows."""
        sources = {}
        for name, rows in parts.items():
            targets = target_bytes = 0
            for batch in in_order(rows):
                found = batch.targets[batch.loss_weights > 0]
                targets += found.size
                target_bytes += int(tokenizer.bytes_per_id[found].sum())
            sources[name] = cls(
                Batches(rows, batch_size), target_bytes, targets, tokenizer, (rows,)
            )
        return cls(
            batches=Batches(join(list(parts.values())), batch_size),
            target_bytes=sum(source.target_bytes for source in sources.values()),
            targets=sum(source.targets for source in sources.values()),
            tokenizer=tokenizer,
            parts=tuple(parts.values()),
            sources=sources,
        )

    @cached_property
    def documents(self) -> tuple[Document, ...]:
        """The texts, decoded: for byte-level vocabularies exactly what was read."""
        return tuple(
            Document(name, self.tokenizer.decode(rows.examples[i].ids))
            for rows in self.parts
            for i, name in enumerate(rows.examples.names())
        )

    def bits_per_byte(self, nats: float) -> float:
        """Converts the summed (not averaged) negative log-likelihood of all targets."""
        return nats / math.log(2) / self.target_bytes
