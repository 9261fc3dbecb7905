"""Constraints as llguidance compiles them. No jax here: a process of its own may try one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from zaya_jax.errors import UserError

STEP_ITEMS = 25_000
"""Of the parser, for a token's mask: half of the library's own limit."""

FORCED = 8
"""Stretches of forced tokens at the beginning of a text that are tried when it is compiled."""


class Vocabulary(NamedTuple):
    """What llguidance asks of a tokenizer.

    tokens: bytes of each, as many as the embedding has rows. special: ids of tokens without text.
    bos: of the token that opens a text, if any. ends: of those that end one.
    """

    tokens: list[bytes]
    special: list[int]
    bos: int | None
    ends: list[int]


class Builder:
    """Compiles for one vocabulary; needs no jax, so that a process of its own may try it.

    fill: writes a matcher's bits.
    """

    def __init__(self, vocabulary: Vocabulary, encode: Callable[[str], list[int]]):
        """Args: encode: a text's tokens.

        Raises:
          UserError: llguidance is not installed.
        """
        try:
            import llguidance
            import llguidance.numpy
        except ImportError as error:
            raise UserError(
                f"a constraint on the text needs llguidance: {error}; install it with "
                "pip install -r requirements-serve.txt"
            ) from error
        self._library, self.fill = llguidance.LLMatcher, llguidance.numpy.fill_next_token_bitmask
        wrapped = llguidance.TokenizerWrapper(_Tokens(vocabulary, encode))
        self._tokenizer = llguidance.LLTokenizer(wrapped, eos_token=vocabulary.ends)
        self._limits = llguidance.LLParserLimits(step_max_items=STEP_ITEMS, verbose_errors=False)
        self._words = np.zeros((1, -(-len(vocabulary.tokens) // 32)), np.int32)

    def __call__(self, kind: str, text: str) -> Any:
        """The library's matcher of a constraint, of which the first tokens are known.

        Raises:
          UserError: what is wrong with it.
        """
        library = self._library
        try:
            if kind == "json_schema":
                grammar = library.grammar_from_json_schema(text)
            elif kind == "regex":
                grammar = library.grammar_from_regex(text)
            else:
                grammar = library.grammar_from_lark(text)
            matcher = library(self._tokenizer, grammar, log_level=0, limits=self._limits)
            if not matcher.is_error():
                self.fill(matcher, self._words.copy(), 0)
            tried = self._begun(matcher)
        except (ValueError, TypeError) as error:
            raise UserError(f"constraint: {kind}: {error}") from error
        if tried.is_error():
            raise UserError(f"constraint: {kind}: {said(tried.get_error())}")
        return matcher

    def _begun(self, matcher: Any) -> Any:
        """A copy that has gone on by what must stand at the beginning: limits that every text meets
        are met here. The matcher itself if it is in error."""
        if matcher.is_error():
            return matcher
        begun = matcher.deep_copy()
        for _ in range(FORCED):
            if begun.is_error() or not (forced := begun.compute_ff_tokens()):
                break
            if begun.consume_tokens(forced):
                self.fill(begun, self._words.copy(), 0)
        return begun


def said(message: str) -> str:
    """A message of the library, short and in one line."""
    return " ".join(message.removesuffix("<non-verbose/>").split())[:500]


class _Tokens:
    """A vocabulary, as the library takes it."""

    def __init__(self, vocabulary: Vocabulary, encode: Callable[[str], list[int]]):
        self.tokens, self.special_token_ids = vocabulary.tokens, vocabulary.special
        self.bos_token_id, self.eos_token_id = vocabulary.bos, vocabulary.ends[0]
        self._encode = encode

    def __call__(self, text: bytes | str) -> list[int]:
        return self._encode(text.decode() if isinstance(text, bytes) else text)
