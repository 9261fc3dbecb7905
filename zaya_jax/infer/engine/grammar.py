"""Completions bound to a JSON schema, a regular expression or a grammar, by llguidance.

Before each token the library tells which of the vocabulary may follow; the sampler gives all others
no chance. Log-probabilities stay those of the model itself.

llguidance is an optional dependency (requirements-serve.txt).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from zaya_jax.data.tokenizer import Tokenizer
from zaya_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Constraint:
    """What the whole text of a completion must be.

    kind: of `source`: a JSON schema (a mapping, or its text), a regular expression in the syntax of
      Rust's regex crate, or a context-free grammar in Lark's syntax.
    """

    kind: Literal["json_schema", "regex", "lark"]
    source: str | Mapping[str, Any]


class Grammars:
    """Constraints compiled for one vocabulary.

    Raises:
      UserError: llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: frozenset[int]):
        try:
            import llguidance
            import llguidance.numpy
        except ImportError as error:
            raise UserError(
                f"a constraint on the text needs llguidance: {error}; install it with "
                "pip install -r requirements-serve.txt"
            ) from error
        self._library, self._fill = llguidance, llguidance.numpy.fill_next_token_bitmask
        ends = sorted(i for i in stop_ids if i < tokenizer.vocab_size)
        wrapped = llguidance.TokenizerWrapper(_Vocabulary(tokenizer, vocab_size, ends[0]))
        self._tokenizer = llguidance.LLTokenizer(wrapped, eos_token=ends)

    def matcher(self, constraint: Constraint) -> Matcher:
        """A matcher at the beginning of a text.

        Raises:
          UserError: what is wrong with the constraint, in the library's words.
        """
        build = self._library.LLMatcher
        where = f"constraint: {constraint.kind}"
        source = constraint.source
        try:
            if constraint.kind == "json_schema":
                schema = source if isinstance(source, str) else json.dumps(source)
                grammar = build.grammar_from_json_schema(schema)
            elif not isinstance(source, str):
                raise UserError(f"{where}: expected text, got {type(source).__name__}")
            elif constraint.kind == "regex":
                grammar = build.grammar_from_regex(source)
            elif constraint.kind == "lark":
                grammar = build.grammar_from_lark(source)
            else:
                raise UserError(f"{where}: expected json_schema, regex or lark")
        except (ValueError, TypeError) as error:
            raise UserError(f"{where}: {error}") from error
        wrong, messages = build.validate_grammar_with_warnings(grammar, self._tokenizer)
        if wrong:
            raise UserError(f"{where}: {' '.join(' '.join(messages).split())}")
        return Matcher(build(self._tokenizer, grammar, log_level=0), self._fill)


class Matcher:
    """Where a text stands in its constraint."""

    def __init__(self, matcher: Any, fill: Any):
        self._matcher, self._fill = matcher, fill

    def allow(self, words: np.ndarray) -> None:
        """Writes the bits of the tokens that may follow to `words`, uint32 [ceil(V / 32)]; those of
        the stop tokens once the text may end."""
        self._fill(self._matcher, words.view(np.int32)[None], 0)

    def push(self, token: int) -> bool:
        """Goes on by a token; False if it may not stand there."""
        return bool(self._matcher.consume_token(token))


class _Vocabulary:
    """What llguidance asks of a tokenizer: as many tokens as the embedding has rows."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_id: int):
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = eos_id, tokenizer.bos_id
        special = {i: name for name, i in tokenizer.special_ids.items()}
        # By convention a token that stands for no text is written with a byte that no text has.
        nothing = [b""] * (vocab_size - tokenizer.vocab_size)
        self.tokens = [
            data or b"\xff" + special.get(i, f"<{i}>").encode()
            for i, data in enumerate([*tokenizer.token_bytes, *nothing])
        ]
        self.special_token_ids = sorted(special)

    def __call__(self, text: bytes | str) -> list[int]:
        return self._tokenizer.encode(text.decode() if isinstance(text, bytes) else text)
