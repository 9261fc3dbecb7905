"""Associative recall: pairs of a key and a value, then the same keys, whose values are asked for.

    gdE ksQ kdW gsB ... ;ksQ gdE gsB kdW ...

This is MQAR (Arora et al., arXiv 2312.04927) with keys of two letters. Keys are small, values
capital letters; a semicolon stands between the pairs and the questions. Only the values behind the
questions are learnt and scored; all else is noise, and the loss of it would hide them.

The keys of an example are a grid: some first letters, each with each of some last letters. So
neither letter alone finds a pair: a model has to know, at a value, the two tokens before it.
Nothing can be learnt by heart: keys and values are drawn anew for every example, and there are more
examples than a short run sees.

In nats an answer, with the defaults:

    3.26    chance, ln 26
    2.41    the values of this example, and not which is whose
    1.31    the last letter of the key (or the first), and the four values that go with it
    0       recall
"""

from __future__ import annotations

import string
from collections.abc import Iterator

import numpy as np

from zaya_jax.data.cloze import Cloze

EXAMPLES = 20_000
"""How many there are: 2.56 million tokens."""
FIRST, LAST = 4, 4
"""Different first and last letters in an example; it has a pair for each of both."""
PAIRS = FIRST * LAST
LENGTH = 2 * PAIRS * 4
"""Tokens of an example, the end-of-sequence id included: rows of a multiple hold whole ones."""

_SEED = 231204927
_KEYS = np.frombuffer(string.ascii_lowercase.encode(), np.uint8)
_VALUES = np.frombuffer(string.ascii_uppercase.encode(), np.uint8)


def examples(count: int | None = None) -> Iterator[Cloze]:
    """Examples, always the same ones; those of a smaller number are the first of a larger."""
    blanks = tuple(range(LENGTH // 2 + 2, LENGTH, 4))
    for number, symbols in enumerate(_symbols(EXAMPLES if count is None else count)):
        yield Cloze(f"recall:{number}", symbols.tobytes().decode(), blanks)


def _symbols(count: int) -> np.ndarray:
    """[count, LENGTH - 1] uint8, the examples' characters; the end-of-sequence id comes behind."""
    sizes = [_KEYS.size, _KEYS.size, PAIRS, PAIRS, PAIRS]
    drawn = np.random.default_rng(_SEED).random((count, sum(sizes)))
    parts = np.split(drawn, np.cumsum(sizes)[:-1], axis=1)
    firsts, lasts, listed, asked = (part.argsort(axis=1) for part in parts[:4])
    values = (parts[4] * _VALUES.size).astype(int)
    pair = np.concatenate([listed, asked], axis=1)  # pair p has letters p // LAST and p % LAST

    def of_pairs(symbols: np.ndarray, chosen: np.ndarray, which: np.ndarray) -> np.ndarray:
        return symbols[np.take_along_axis(chosen, which, axis=1)]

    text = np.full((count, 2 * PAIRS, 4), ord(" "), np.uint8)
    text[:, :, 0] = of_pairs(_KEYS, firsts, pair // LAST)
    text[:, :, 1] = of_pairs(_KEYS, lasts, pair % LAST)
    text[:, :, 2] = of_pairs(_VALUES, values, pair)
    text[:, PAIRS - 1, 3] = ord(";")
    return text.reshape(count, LENGTH)[:, :-1]
