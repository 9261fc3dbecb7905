"""Text out of tokens, as it becomes certain: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from zaya_jax.data.tokenizer import Stream, Tokenizer


class TextStream:
    """Decodes tokens one by one and watches for stop strings.

    A stop string is found in the text, wherever the borders of tokens fall; the text ends before
    it. Of several, the one that is complete first counts. What might still become a stop string,
    or an incomplete character, is held back until that is decided.

    Attributes:
      text: everything emitted so far.
      stopped: whether a stop string was found; then nothing more is emitted.
    """

    def __init__(self, tokenizer: Tokenizer | None, stops: Sequence[str] = ()):
        """Without a tokenizer the text stays empty. `stops` must not hold an empty string."""
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._stream = None if tokenizer is None else Stream(tokenizer)
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that has become certain with this token; often all of it, sometimes none.

        Rows of the embedding beyond the tokenizer's vocabulary stand for no text.
        """
        if self._stream is None or self._tokenizer is None or self.stopped:
            return ""
        known = token < self._tokenizer.vocab_size
        return self._release(self._stream.push(token) if known else "", last=False)

    def close(self) -> str:
        """What was held back, now that no token follows."""
        if self._stream is None or self.stopped:
            return ""
        return self._release(self._stream.close(), last=True)

    def _release(self, new: str, *, last: bool) -> str:
        held = self._held + new
        found = [(at + len(stop), at) for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            self.stopped, keep = True, min(found)[1]
        else:
            keep = len(held) if last else len(held) - self._undecided(held)
        out, self._held = held[:keep], held[keep:]
        self.text += out
        return out

    def _undecided(self, held: str) -> int:
        """Length of the longest ending of `held` that a stop string begins with."""
        longest = max(map(len, self._stops), default=1) - 1
        for size in range(min(longest, len(held)), 0, -1):
            if any(stop.startswith(held[-size:]) for stop in self._stops):
                return size
        return 0
