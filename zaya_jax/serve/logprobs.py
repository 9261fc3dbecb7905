"""Log-probabilities as the two forms of the OpenAI API show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zaya_jax.data.tokenizer import Stream, Tokenizer
from zaya_jax.infer.engine import Token

LEAST = -9999.0
"""Stands for a log-probability of minus infinity, which JSON does not have; as OpenAI has it."""


class Names:
    """What tokens are called: their text; their bytes where these are no whole characters."""

    def __init__(self, tokenizer: Tokenizer | None):
        self._tokenizer = tokenizer
        self._special: dict[int, str] = {}
        if tokenizer is not None:
            self._special = {i: name for name, i in tokenizer.special_ids.items()}

    def bytes(self, id: int) -> bytes:
        """What a token stands for; the name of one that stands for no text."""
        if id in self._special:
            return self._special[id].encode()
        if self._tokenizer is None or id >= self._tokenizer.vocab_size:
            return f"token_id:{id}".encode()
        return self._tokenizer.token_bytes[id]

    def name(self, id: int) -> str:
        """A text for it; different tokens have different ones, nearly always."""
        data = self.bytes(id)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def chat(self, tokens: Sequence[Token]) -> dict[str, Any]:
        """`logprobs` of a chat's choice."""

        def entry(id: int, logprob: float) -> dict[str, Any]:
            told = max(logprob, LEAST)
            return {"token": self.name(id), "logprob": told, "bytes": [*self.bytes(id)]}

        content = [
            entry(token.id, token.logprob) | {"top_logprobs": [entry(*best) for best in token.best]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def likeliest(self, token: Token) -> dict[str, float]:
        """`top_logprobs` of a token: the likeliest and itself, by name."""
        found: dict[str, float] = {}
        for id, logprob in token.best:
            found.setdefault(self.name(id), max(logprob, LEAST))  # of two with a name, the likelier
        found.setdefault(self.name(token.id), max(token.logprob, LEAST))
        return found


class Listing:
    """`logprobs` of a completion's choice: parallel lists, and where each token's text begins."""

    def __init__(self, names: Names, tokenizer: Tokenizer | None, *, top: bool):
        """Args: top: whether likeliest tokens were asked for."""
        self._names, self._top = names, top
        self._stream = None if tokenizer is None else Stream(tokenizer)
        self._size = 0 if tokenizer is None else tokenizer.vocab_size
        self._offset = 0

    def add(self, tokens: Sequence[Token | int]) -> dict[str, Any]:
        """The lists of the next tokens. One that is a number only has no score: the very first."""
        names, scores, tops, offsets = [], [], [], []
        for token in tokens:
            id = token if isinstance(token, int) else token.id
            names.append(self._names.name(id))
            offsets.append(self._offset)
            if self._stream is not None and id < self._size:
                self._offset += len(self._stream.push(id))
            scores.append(max(token.logprob, LEAST) if isinstance(token, Token) else None)
            tops.append(self._names.likeliest(token) if isinstance(token, Token) else None)
        return {
            "tokens": names,
            "token_logprobs": scores,
            "top_logprobs": tops if self._top else None,
            "text_offset": offsets,
        }
