import gzip
import lzma
import math
from collections import Counter

import numpy as np
import pytest

from tests.data.in_memory import pack, text
from zaya_jax.config import Data
from zaya_jax.data import prepare
from zaya_jax.data.baselines import baselines, compressors, ngram_nats
from zaya_jax.data.readers import Document

V = 12


def test_ngrams_agree_with_the_formula_on_drawn_text():
    rng = np.random.default_rng(0)
    draw = lambda n: [rng.integers(2, V, rng.integers(1, 9)).tolist() for _ in range(n)]  # noqa: E731
    train, heldout = draw(12), draw(8)

    def pairs(documents):
        return [p for d in documents for p in zip(d, [*d[1:], 1], strict=True)]

    after = Counter(b for _, b in pairs(train))
    both = Counter(pairs(train))
    before = Counter(a for a, _ in pairs(train))
    unigram = {b: (after[b] + 1) / (len(pairs(train)) + V) for b in range(V)}

    def bigram(a, b):
        distinct = len({y for x, y in both if x == a})
        if not before[a]:
            return unigram[b]
        return (both[a, b] + distinct * unigram[b]) / (before[a] + distinct)

    assert sum(bigram(3, b) for b in range(V)) == pytest.approx(1)
    got = ngram_nats(pack(map(text, train), 5), pack(map(text, heldout), 5), V)
    assert got[0] == pytest.approx(-sum(math.log(unigram[b]) for _, b in pairs(heldout)))
    assert got[1] == pytest.approx(-sum(math.log(bigram(a, b)) for a, b in pairs(heldout)))


def test_row_length_does_not_change_the_baselines():
    documents = [text([2, 3, 4]), text([5, 2, 3])]
    rows = {length: pack(documents, length) for length in (2, 3, 7)}
    assert ngram_nats(rows[2], rows[7], V) == ngram_nats(rows[3], rows[3], V)


def test_compressors_see_one_joined_file():
    documents = [Document("a", "héllo " * 50), Document("b", "héllo " * 50)]
    data = ("héllo " * 100).encode()
    got = compressors(documents)
    assert got["gzip"] == pytest.approx(8 * len(gzip.compress(data)) / len(data), rel=0.05)
    assert got["xz"] == pytest.approx(8 * len(lzma.compress(data)) / len(data), rel=0.05)


def test_context_helps_on_real_text(folder, tmp_path):
    data = Data(source=str(folder), heldout_fraction=0.2, cache_dir=str(tmp_path / "cache"))
    prepared = prepare(data, vocab_size=300, sequence_length=32, batch_size=4, seed=0)
    table = baselines(prepared)
    assert list(table) == ["unigram", "bigram", "gzip", "xz"]
    assert 0 < table["bigram"] < table["unigram"] < 8
