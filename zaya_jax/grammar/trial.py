"""Compiles a constraint where that can do no harm: what is run in a process of its own.

A process that dies of it, or does not come to an end, was a constraint that the server's own
process need not see. See `zaya_jax.answers.workers`.
"""

from __future__ import annotations

import functools
import pickle
import threading
from collections.abc import Sequence

from zaya_jax.grammar.builder import Builder, Vocabulary

STACK = 2**21
"""Bytes of the stack on which it is tried: a small part of what the server's threads have."""


def attempt(asked: tuple[str, str, str]) -> str | None:
    """Compiles; None, or what is wrong. asked: file of the vocabulary, kind, text."""
    path, kind, text = asked
    builder = _builder(path)
    said: list[str | None] = [None]

    def compile() -> None:
        try:
            builder(kind, text)
        except ValueError as error:
            said[0] = str(error)

    threading.stack_size(STACK)
    thread = threading.Thread(target=compile)
    thread.start()
    thread.join()
    return said[0]


@functools.lru_cache(1)
def _builder(path: str) -> Builder:
    with open(path, "rb") as file:
        vocabulary: Vocabulary = pickle.load(file)
    return Builder(vocabulary, Greedy(vocabulary.tokens))


class Greedy:
    """Writes a text in the longest tokens, from its beginning on: other tokens than a trained
    tokenizer's, but of the same text, which is what a trial needs."""

    def __init__(self, tokens: Sequence[bytes]):
        self._ids = {token: id for id, token in enumerate(tokens)}
        self._longest = max(map(len, tokens))

    def __call__(self, text: str) -> list[int]:
        data, ids = text.encode(), []
        while data:
            sizes = range(min(self._longest, len(data)), 0, -1)
            size = next((n for n in sizes if data[:n] in self._ids), None)
            if size is None:  # no token begins so
                break
            ids.append(self._ids[data[:size]])
            data = data[size:]
        return ids
