"""A record as token ids: what is learnt, and where the model thinks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Think(NamedTuple):
    """The inside of one think block.

    Attributes:
        start: first token after `<think>`.
        stop: the token `</think>`; equal to `start` if the block is empty.
        turn: which assistant turn holds it, from 0.
    """

    start: int
    stop: int
    turn: int


@dataclass(frozen=True, eq=False)
class Example:
    """One text, conversation or cloze of n tokens.

    Attributes:
        ids: [n] int32, the token ids.
        learn: [n] bool, the tokens that the model has to produce: all of a text; of assistant
            turns the thinking, the answer, the tool calls and the token that ends the turn; of a
            cloze the blanks.
        thinks: the think blocks of assistant turns, in order. Token `start - 1` is `<think>` and
            token `stop` is `</think>`.
        turns: number of assistant turns; 0 for a text, 1 for a cloze. An example with turns is
            of use as a whole only.
    """

    ids: np.ndarray
    learn: np.ndarray
    thinks: tuple[Think, ...]
    turns: int

    def __len__(self) -> int:
        return self.ids.size

    def take(self, keep: np.ndarray) -> Example:
        """The tokens where `keep` ([n] bool) holds. A block that loses a tag is a block no more."""
        place = np.concatenate([[0], np.cumsum(keep)])  # where token i comes to stand
        thinks = tuple(
            Think(int(place[think.start]), int(place[think.stop]), think.turn)
            for think in self.thinks
            if keep[think.start - 1] and keep[think.stop]
        )
        return Example(self.ids[keep], self.learn[keep], thinks, self.turns)
