"""What a language model has to beat on the held-out text, in bits per byte.

Counting models predict exactly the targets that the network predicts, over the same tokens.
Compressors get the raw bytes; they have seen no training text and adapt as they go, so they
are a landmark, not a rival.
"""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Sequence

import numpy as np

from zaya_jax.data.packing import Rows, in_order
from zaya_jax.data.pipeline import Prepared
from zaya_jax.data.readers import Document


def baselines(prepared: Prepared) -> dict[str, float]:
    """Bits per byte on the held-out documents of `unigram`, `bigram`, `gzip` and `xz`."""
    train, heldout = prepared.train.rows, prepared.heldout.batches.rows
    nats = ngram_nats(train, heldout, prepared.tokenizer.vocab_size)
    return {
        "unigram": prepared.heldout.bits_per_byte(nats[0]),
        "bigram": prepared.heldout.bits_per_byte(nats[1]),
        **compressors(prepared.heldout.documents),
    }


def ngram_nats(train: Rows, heldout: Rows, vocab_size: int) -> tuple[float, float]:
    """Negative log-likelihood (nats, summed) of the held-out targets under counting models.

    The unigram model adds one to every count. The bigram model interpolates with it by Witten
    and Bell's rule, which has no parameter to fit: p(b|a) = (c(ab) + u(a) p(b)) / (c(a) + u(a)),
    where u(a) counts the different tokens seen after a.

    Args:
        train: rows to count.
        heldout: rows to predict.
        vocab_size: V.

    Returns:
        (unigram, bigram).
    """
    before, after = _pairs(train)
    unigram = np.bincount(after, minlength=vocab_size) + 1.0
    unigram /= unigram.sum()

    # Pairs are kept sorted by the code a * V + b: V * V counters would not fit for a large V.
    codes, counts = np.unique(before * vocab_size + after, return_counts=True)
    followers = np.bincount(codes // vocab_size, minlength=vocab_size)
    seen = np.bincount(before, minlength=vocab_size)

    before, after = _pairs(heldout)
    wanted = before * vocab_size + after
    place = np.minimum(np.searchsorted(codes, wanted), codes.size - 1)
    count = np.where(codes[place] == wanted, counts[place], 0)
    fallback, total = followers[before], seen[before]
    bigram = np.where(
        total > 0,
        (count + fallback * unigram[after]) / np.maximum(total + fallback, 1),
        unigram[after],
    )
    return float(-np.log(unigram[after]).sum()), float(-np.log(bigram).sum())


def compressors(documents: Sequence[Document]) -> dict[str, float]:
    """Bits per byte of gzip -9 and xz -9e, each over all documents joined into one file."""
    data = "".join(document.text for document in documents).encode()
    return {
        "gzip": 8 * len(gzip.compress(data, compresslevel=9)) / len(data),
        "xz": 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(data),
    }


def _pairs(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Every input token that has a target, and its target, [P] int64 each."""
    pairs = []
    for batch in in_order(rows):
        there = batch.loss_weights > 0
        pairs.append(np.stack([batch.tokens[there], batch.targets[there]]))
    before, after = np.concatenate(pairs, axis=1).astype(np.int64)
    return before, after
