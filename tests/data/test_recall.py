import math
import time
from collections import Counter

import numpy as np
import pytest

from zaya_jax.config import Data
from zaya_jax.data import prepare, recall
from zaya_jax.data.packing import in_order
from zaya_jax.data.readers import Rules
from zaya_jax.data.sources import read
from zaya_jax.data.tokenizer import SMALLEST_VOCABULARY


@pytest.fixture(scope="module")
def all_examples():
    return list(read("recall", Rules()))


@pytest.fixture
def few(monkeypatch):
    """Fewer examples, which are made and encoded in a moment."""
    monkeypatch.setattr(recall, "EXAMPLES", 400)


def prepared(tmp_path, **changed):
    sizes = dict(vocab_size=2048, sequence_length=2 * recall.LENGTH, batch_size=4, seed=0)
    sizes |= {name: changed.pop(name) for name in sizes if name in changed}
    fields = dict(source="recall", heldout_fraction=0.1, cache_dir=str(tmp_path / "cache"))
    return prepare(Data(**fields | changed), **sizes)


def parts(example):
    """The pairs, and the questions with their answers: lists of (key, value)."""
    return [[(pair[:2], pair[2]) for pair in half.split(" ")] for half in example.text.split(";")]


def nats(examples, places):
    """Per answer, of who knows some of the two letters of keys, and counts the pairs they fit."""
    found = []
    for example in examples:
        pairs, asked = parts(example)
        for key, value in asked:
            fits = [v for k, v in pairs if all(k[i] == key[i] for i in places)]
            found.append(-math.log(fits.count(value) / len(fits)))
    return np.mean(found)


# --- The task --------------------------------------------------------------------------------


def test_an_example_lists_pairs_and_asks_for_all_of_them_in_another_order(all_examples):
    assert len(all_examples) == recall.EXAMPLES
    assert sum(parts(e)[0] == parts(e)[1] for e in all_examples) == 0
    for example in all_examples[::50]:
        pairs, asked = parts(example)
        assert len(pairs) == recall.PAIRS and sorted(pairs) == sorted(asked)
        keys = [key for key, _ in pairs]
        assert len(set(keys)) == recall.PAIRS
        for place, shared in ((0, recall.LAST), (1, recall.FIRST)):
            assert set(Counter(key[place] for key in keys).values()) == {shared}
        assert "".join(example.text[i] for i in example.blanks) == "".join(v for _, v in asked)
        assert len(example.text) + 1 == recall.LENGTH


def test_letters_and_orders_are_even(all_examples):
    """No letter, and no place in the list, tells what will be asked or answered."""
    texts = np.array([list(example.text.encode()) for example in all_examples])
    blanks = list(all_examples[0].blanks)
    for places, letters in ((blanks, 26), ([0, 4, 64, 68], 26), ([1, 5, 65, 69], 26)):
        counts = np.unique(texts[:, places], return_counts=True)[1]
        expected = counts.sum() / letters
        # Letters of a key are drawn without replacement, which spreads them more evenly still.
        assert counts.size == letters and abs(counts / expected - 1).max() < 0.1
    first = [parts(e) for e in all_examples[:4000]]
    asked_first = np.array([[k for k, _ in pairs].index(asked[0][0]) for pairs, asked in first])
    counts = np.bincount(asked_first, minlength=recall.PAIRS)
    assert abs(counts / (4000 / recall.PAIRS) - 1).max() < 0.3


def test_both_letters_solve_it_and_one_alone_does_not(all_examples):
    """The figures in the docstring of the module."""
    some = all_examples[:2000]
    assert nats(some, [0, 1]) == 0
    assert nats(some, [1]) == pytest.approx(1.31, abs=0.02)
    assert nats(some, [0]) == pytest.approx(1.31, abs=0.02)
    assert nats(some, []) == pytest.approx(2.41, abs=0.02)
    for figure in ("3.26 ", "2.41 ", "1.31 "):
        assert f"\n    {figure}" in recall.__doc__


def test_examples_are_always_the_same_and_never_twice(all_examples):
    assert list(recall.examples(300)) == all_examples[:300]
    assert len({example.text for example in all_examples}) == recall.EXAMPLES
    # Not even the keys and values of one come back in another order.
    assert len({tuple(sorted(parts(e)[0])) for e in all_examples}) == recall.EXAMPLES


def test_it_takes_no_time():
    began = time.process_time()
    assert sum(1 for _ in recall.examples(5000)) == 5000
    assert time.process_time() - began < 1


# --- As data to train on ---------------------------------------------------------------------


@pytest.mark.parametrize("vocab_size", [SMALLEST_VOCABULARY + 8, 2048])
def test_every_character_is_a_token_and_the_answers_alone_are_learnt(few, tmp_path, vocab_size):
    data = prepared(tmp_path, vocab_size=vocab_size)
    assert data.tokenizer.vocab_size == SMALLEST_VOCABULARY + 8  # nothing is merged
    for batch in in_order(data.train.rows):
        assert (batch.segment_ids.max(axis=1) == 2).all()  # whole examples, and no padding
        assert (batch.loss_weights.sum(axis=1) == 2 * recall.PAIRS).all()
        for row in range(len(batch.tokens)):
            text = data.tokenizer.decode(batch.tokens[row], keep_special=True)
            assert text.count("<eos>") == 2 and len(text) == 2 * (recall.LENGTH - 1 + 5)
            answers = data.tokenizer.decode(batch.targets[row][batch.loss_weights[row] > 0])
            asked = [half.split(";")[1] for half in text.split("<eos>")[:2]]
            assert answers == "".join(answer[2] for half in asked for answer in half.split(" "))


def test_beside_text_the_vocabulary_is_that_of_the_text(few, tmp_path, folder):
    """And still every character of a cloze is a token."""
    weights = ((str(folder), 1.0), ("recall", 1.0))
    data = prepared(tmp_path, mixture=weights, vocab_size=320)
    assert data.tokenizer.vocab_size == 320
    info = data.info.sources[1]
    assert info.train.tokens == info.train.documents * recall.LENGTH
    (text,) = [part for part in data.heldout.sources if part != "recall"]
    assert data.heldout.sources[text].targets > 0


def test_held_out_examples_are_scored_by_their_answers(few, tmp_path):
    data = prepared(tmp_path)
    examples = data.info.heldout.documents
    assert data.info.train.documents + examples == 400
    assert data.heldout.targets == data.heldout.target_bytes == examples * recall.PAIRS
    chance = data.heldout.targets * math.log(26)
    assert data.heldout.bits_per_byte(chance) == pytest.approx(math.log2(26))
    shown = [document.text for document in data.heldout.documents]
    rows = data.train.rows
    trained = data.tokenizer.decode(np.concatenate([b.tokens.ravel() for b in in_order(rows)]))
    assert shown and not any(text in trained for text in shown)


def test_examples_that_do_not_fit_are_dropped_and_not_cut(few, tmp_path):
    fits = prepared(tmp_path, packing="best_fit", sequence_length=recall.LENGTH)
    assert fits.info.train.kept == fits.info.train.rows == fits.info.train.documents
    with pytest.raises(ValueError, match=f"none of the examples .* in {recall.LENGTH - 1} tokens"):
        prepared(tmp_path, packing="best_fit", sequence_length=recall.LENGTH - 1)


def test_other_blanks_are_other_data(few, tmp_path, monkeypatch):
    before = prepared(tmp_path).info
    made = recall.examples

    def shorter(count=400):
        return (example._replace(blanks=example.blanks[1:]) for example in made(count))

    monkeypatch.setattr(recall, "examples", shorter)
    after = prepared(tmp_path).info
    assert after.rows_sha256 != before.rows_sha256
    assert after.train == before.train
