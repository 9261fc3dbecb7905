"""Prepared data as text: counts, histograms of lengths, and packed rows to be read by people."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from zaya_jax.data.info import DataInfo
from zaya_jax.data.packing import Batch
from zaya_jax.data.tokenizer import Tokenizer

MASKED = ("⟦", "⟧")
"""Around what is read but not learnt."""
_BAR = 40
"""Characters of the longest bar."""


def histogram(lengths: np.ndarray) -> dict[str, int]:
    """Counts lengths by powers of two: `{"1-1": 3, "2-3": 5, "4-7": 0, ...}` up to the longest."""
    exponents = np.frexp(np.asarray(lengths, float))[1] - 1
    counts = np.bincount(exponents)
    first = int(exponents.min())
    return {f"{2**i}-{2 ** (i + 1) - 1}": int(counts[i]) for i in range(first, counts.size)}


def bars(counts: dict[str, int]) -> Iterator[str]:
    """A line for each count, the largest with a bar of full length."""
    width, most = max(map(len, counts)), max(counts.values())
    for name, count in counts.items():
        bar = "█" * round(_BAR * count / most) or ("▏" if count else "")
        yield f"{name:>{width}}  {count:>9,}  {bar}".rstrip()


def summary(info: DataInfo, histograms: list[dict[str, int]]) -> Iterator[str]:
    """What was prepared, source by source.

    Args:
        info: of the data.
        histograms: of the lengths of each source's training examples.
    """
    for source, counts in zip(info.sources, histograms, strict=True):
        c, t, h = source.corpus, source.train, source.heldout
        left_out = {"not UTF-8": c.skipped, "empty": c.empty, "bad": c.bad + t.bad + h.bad}
        told = "".join(f", {count:,} {what}" for what, count in left_out.items() if count)
        yield (
            f"{c.source}: {c.documents:,} examples, {c.bytes / 1e6:,.1f} MB{told}, "
            f"sha256 {c.sha256[:12]}, weight {source.weight:.3g}"
        )
        yield f"  train: {t.documents:,} examples, {t.tokens:,} tokens"
        yield f"  held out: {h.documents:,} examples, {h.tokens:,} tokens"
        outcome = ", ".join(
            f"{getattr(t, name):,} {name}"
            for name in ("kept", "trimmed", "stripped", "dropped", "cut")
            if getattr(t, name) or name in ("kept", "dropped")
        )
        yield f"  in rows of {info.sequence_length:,} ({info.packing}): {outcome}"
        yield f"  {t.rows:,} rows, {t.packed:,} tokens in them: {t.efficiency:.2%} of the room"
        yield "  examples by length in tokens:"
        yield from (f"    {line}" for line in bars(counts))
    for step, weights in info.schedule:
        shares = zip((source.corpus.source for source in info.sources), weights, strict=True)
        told = ", ".join(f"{source} {weight:.3g}" for source, weight in shares)
        yield f"weights from step {step:,} on: {told}"


def row(batch: Batch, tokenizer: Tokenizer) -> Iterator[str]:
    """A row as text: every segment under a line that tells its borders.

    Control tokens stand by name. What is read but not learnt stands in `⟦⟧`; a segment's first
    token always does, for nothing predicts it.

    Args:
        batch: fields of shape [1, S].
        tokenizer: of its ids.
    """
    tokens, segments, weights = (
        getattr(batch, name)[0] for name in ("tokens", "segment_ids", "loss_weights")
    )
    for segment in range(1, int(segments.max(initial=0)) + 1):
        (places,) = np.nonzero(segments == segment)
        # A weight stands where a token is predicted from: one place before the token.
        learnt = np.append(False, weights[places[:-1]] > 0)
        yield (
            f"── segment {segment}: {places.size} tokens at {places[0]}-{places[-1]}, "
            f"{int(weights[places].sum())} targets ──"
        )
        text = []
        starts = np.flatnonzero(np.diff(learnt, prepend=not learnt[0]))
        for start, stop in zip(starts, [*starts[1:], places.size], strict=True):
            part = tokenizer.decode(tokens[places[start:stop]], keep_special=True)
            text.append(part if learnt[start] else f"{MASKED[0]}{part}{MASKED[1]}")
        yield "".join(text)
    if padding := int((segments == 0).sum()):
        yield f"── {padding} tokens of padding ──"
