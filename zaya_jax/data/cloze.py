"""A record of symbols, some of which are blanks to be filled in: what made-up tasks are made of."""

from __future__ import annotations

from typing import NamedTuple


class Cloze(NamedTuple):
    """A text of single symbols of which only some are to be learnt; named as documents are.

    Every character is encoded by itself, so that blanks are tokens whatever the vocabulary.
    `blanks` are the numbers of the characters to be learnt.
    """

    name: str
    text: str
    blanks: tuple[int, ...]

    @property
    def content(self) -> str:
        """What is hashed and counted: the text."""
        return self.text

    @property
    def exact(self) -> str:
        """All that ids and the mask are made of: the text and the blanks."""
        return f"{self.text}\0{self.blanks}"

    @property
    def bytes(self) -> int:
        """Length of the content in UTF-8."""
        return len(self.content.encode())
