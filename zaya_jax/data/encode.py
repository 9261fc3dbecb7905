"""Records to examples of token ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from zaya_jax.data import chat
from zaya_jax.data.cloze import Cloze
from zaya_jax.data.example import Example
from zaya_jax.data.readers import BadRecord, Conversation, Document, Record
from zaya_jax.data.records import Table
from zaya_jax.data.tokenizer import Tokenizer
from zaya_jax.errors import UserError

VERSION = 1
"""To be raised with every change of this code that changes ids, masks or think spans: examples that
were encoded before are then no longer taken from the cache."""


@dataclass(frozen=True)
class Encoder:
    """Encodes texts and clozes, closing each with the end-of-sequence id, and conversations.

    Attributes:
        tokenizer: of all.
        template: of chats.
        where: what precedes a record's name in messages.
        skip_bad: leave records out that cannot be encoded, instead of raising.
    """

    tokenizer: Tokenizer
    template: chat.ChatTemplate
    where: str = ""
    skip_bad: bool = False

    @property
    def sha256(self) -> str:
        """Hash (hex) of all that the ids depend on beside the records."""
        t = self.tokenizer
        text = f"{VERSION} {t.sha256} {t.eos_id} {self.skip_bad} {self.template.source}"
        return hashlib.sha256(text.encode()).hexdigest()

    def __call__(self, records: Sequence[Record]) -> tuple[list[Example], list[str], Table]:
        """Encodes records; of text all is learnt, of a cloze the blanks.

        Returns:
            The examples, their names, and their table.

        Raises:
            BadRecord: a conversation that the template or its rules refuse; names it.
        """
        texts = [record.text for record in records if isinstance(record, Document)]
        encoded = iter(self.tokenizer.encode_batch(texts))
        symbols = self._symbols(record for record in records if isinstance(record, Cloze))
        kept: list[tuple[Example, Record]] = []
        bad = 0
        for record in records:
            if isinstance(record, Document):
                kept.append((self._text(next(encoded)), record))
                continue
            if isinstance(record, Cloze):
                kept.append((self._cloze(record, symbols), record))
                continue
            try:
                kept.append((self._chat(record), record))
            except UserError:  # of the tokenizer or the template: no record is to blame
                raise
            except ValueError as error:
                if not self.skip_bad:
                    raise BadRecord(
                        f"{self.where}{record.name}: {error}. "
                        "on_bad_record = 'skip' leaves such records out"
                    ) from None
                bad += 1
        examples = [example for example, _ in kept]
        names = [record.name for _, record in kept]
        return examples, names, Table.of(examples, [record.bytes for _, record in kept], bad)

    def _text(self, ids: list[int]) -> Example:
        closed = np.array([*ids, self.tokenizer.eos_id], np.int32)
        return Example(closed, np.ones(closed.size, bool), (), turns=0)

    def _symbols(self, records: Iterable[Cloze]) -> dict[str, list[int]]:
        """Ids of every character that there is in clozes."""
        found = sorted(set().union(*(record.text for record in records)))
        return dict(zip(found, self.tokenizer.encode_batch(found), strict=True))

    def _cloze(self, record: Cloze, symbols: Mapping[str, list[int]]) -> Example:
        """As an answer to questions, a cloze has one turn: where packing keeps these whole, too."""
        blanks = set(record.blanks)
        ids = [(i, at in blanks) for at, symbol in enumerate(record.text) for i in symbols[symbol]]
        closed = np.array([*ids, (self.tokenizer.eos_id, False)], np.int32)
        return Example(closed[:, 0], closed[:, 1].astype(bool), (), turns=1)

    def _chat(self, record: Conversation) -> Example:
        example = chat.encode(record.messages, self.tokenizer, self.template, record.tools)
        if not example.turns or not example.learn.any():
            raise ValueError("there is no assistant turn to learn from")
        return example
