"""Completions bound to a JSON schema, a regular expression or a grammar, by llguidance.

Before each token the library tells which of the vocabulary may follow; the sampler gives all others
no chance. Log-probabilities stay those of the model itself.

A constraint is compiled once; each text that it binds gets a copy. What is too large is refused
before it is compiled (`bounds`), and a step over it may take so much work and no more: a matcher
that comes to its limits says so, and ends its text.

llguidance is an optional dependency (requirements-serve.txt).
"""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from zaya_jax.data.tokenizer import Tokenizer
from zaya_jax.errors import UserError
from zaya_jax.grammar import bounds
from zaya_jax.grammar.builder import Builder, Vocabulary, said

KEPT = 32
"""Constraints that stay compiled."""
GRACE, EACH = 2.0, 0.02
"""Seconds that a constraint may cost at all, and more for each token. All that decodes waits for
it, and an ambiguous grammar within the library's limits may cost a fifth of a second a token."""


@dataclasses.dataclass(frozen=True)
class Constraint:
    """What the whole text of a completion must be.

    kind: of `source`: a JSON schema (a mapping, or its text), a regular expression in the syntax of
      Rust's regex crate, or a context-free grammar in Lark's syntax.
    """

    kind: Literal["json_schema", "regex", "lark"]
    source: str | Mapping[str, Any]

    def text(self) -> str:
        """The source, as the library reads it.

        Raises:
          UserError: no source of its kind, or one that is too large.
        """
        where, source = f"constraint: {self.kind}", self.source
        try:
            if self.kind == "json_schema":
                if isinstance(source, str):
                    bounds.check_length(source)
                    source = json.loads(source)
                bounds.check_schema(source)
                text = json.dumps(source)
                bounds.check_length(text)
                return text
            if not isinstance(source, str):
                raise UserError(f"expected text, got {type(source).__name__}")
            if self.kind == "regex":
                bounds.check_text(source)
            elif self.kind == "lark":
                bounds.check_lark(source)
            else:
                raise UserError("expected json_schema, regex or lark")
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{where}: {error}") from error
        return source


class Compiled:
    """A constraint that is ready: `matcher` costs next to nothing. Made by `Grammars.compile`."""

    def __init__(self, matcher: Any, fill: Any):
        self._matcher, self._fill = matcher, fill

    def matcher(self) -> Matcher:
        """One at the beginning of a text; it shares nothing with others."""
        return Matcher(self._matcher.deep_copy(), self._fill)


class Grammars:
    """Constraints compiled for one vocabulary; may be used by several threads.

    Raises:
      UserError: llguidance is not installed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, stop_ids: frozenset[int]):
        ends = sorted(i for i in stop_ids if i < tokenizer.vocab_size)
        self.vocabulary = vocabulary_of(tokenizer, vocab_size, ends)
        self._build = Builder(self.vocabulary, tokenizer.encode)
        self._known: OrderedDict[tuple[str, str], Compiled] = OrderedDict()
        self._lock = threading.Lock()

    def known(self, constraint: Constraint) -> Compiled | None:
        """The constraint, if it was compiled a short while ago.

        Raises:
          UserError: see `Constraint.text`.
        """
        key = (constraint.kind, constraint.text())
        with self._lock:
            if (found := self._known.get(key)) is not None:
                self._known.move_to_end(key)
            return found

    def compile(self, constraint: Constraint) -> Compiled:
        """Raises: UserError: what is wrong with the constraint, in the library's words."""
        if (found := self.known(constraint)) is not None:
            return found
        kind, text = constraint.kind, constraint.text()
        compiled = Compiled(self._build(kind, text), self._build.fill)
        with self._lock:
            self._known[kind, text] = compiled
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return compiled

    def matcher(self, constraint: Constraint | Compiled) -> Matcher:
        """A matcher at the beginning of a text.

        Raises:
          UserError: see `compile`.
        """
        if isinstance(constraint, Constraint):
            constraint = self.compile(constraint)
        return constraint.matcher()


class Matcher:
    """Where a text stands in its constraint."""

    def __init__(self, matcher: Any, fill: Any):
        self._matcher, self._fill = matcher, fill
        self._seconds, self._tokens = 0.0, 0

    def allow(self, words: np.ndarray) -> None:
        """Writes the bits of the tokens that may follow to `words`, uint32 [ceil(V / 32)]; those of
        the stop tokens once the text may end.

        Raises:
          UserError: the constraint is too ambiguous, or otherwise too much for the library.
        """
        began = time.thread_time()
        self._fill(self._matcher, words.view(np.int32)[None], 0)
        self._seconds += time.thread_time() - began
        if self._seconds > GRACE + EACH * self._tokens:
            raise UserError(
                f"constraint: it cost {self._seconds:.1f} s for {self._tokens} tokens; make it "
                "less ambiguous"
            )
        if self._matcher.is_error():  # the bits would end the text, as if it were whole
            raise UserError(f"constraint: {said(self._matcher.get_error())}")

    def push(self, token: int) -> bool:
        """Goes on by a token; False if it may not stand there, or is too much for the library."""
        began = time.thread_time()
        taken = self._matcher.consume_token(token)
        self._seconds += time.thread_time() - began
        self._tokens += 1
        return bool(taken)

    @property
    def error(self) -> str:
        """Why a `push` was refused."""
        return said(self._matcher.get_error())


def vocabulary_of(tokenizer: Tokenizer, size: int, ends: Sequence[int]) -> Vocabulary:
    """A tokenizer as the library takes it: as many tokens as the embedding has rows."""
    special = {i: name for name, i in tokenizer.special_ids.items()}
    # By convention a token that stands for no text is written with a byte that no text has.
    nothing = [b""] * (size - tokenizer.vocab_size)
    tokens = [
        data or b"\xff" + special.get(i, f"<{i}>").encode()
        for i, data in enumerate([*tokenizer.token_bytes, *nothing])
    ]
    return Vocabulary(tokens, sorted(special), tokenizer.bos_id, list(ends))
