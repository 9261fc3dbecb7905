import json
import math

import numpy as np
import pytest

from zaya_jax.data import prepare
from zaya_jax.data.packing import PackedRows, TokenStream
from zaya_jax.data.pipeline import Batches, encode


def rows(count, length=4):
    """Row i is a whole document of id i + 2."""
    return PackedRows(TokenStream.of([[i + 2] * (length - 1) for i in range(count)], 1, 99), length)


def options(folder, tmp_path, **changed):
    return (
        dict(
            source=str(folder),
            tokenizer=None,
            vocab_size=320,
            sequence_length=32,
            batch_size=4,
            seed=3,
            heldout_fraction=0.1,
            heldout_max_bytes=None,
            text_field="text",
            on_bad_text="strict",
            cache_dir=tmp_path / "cache",
        )
        | changed
    )


def first_ids(batches, steps):
    return [batches.batch(step).tokens[:, 0].tolist() for step in steps]


# --- Order -----------------------------------------------------------------------------------


def test_every_epoch_visits_every_row_once_in_a_new_order():
    batches = Batches(rows(10), 4, seed=0)
    seen = sum(first_ids(batches, range(10)), [])  # 40 rows: four epochs
    epochs = [seen[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(2, 12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_depends_on_seed_and_step_alone():
    forwards = first_ids(Batches(rows(10), 4, seed=0), range(12))
    resumed = first_ids(Batches(rows(10), 4, seed=0), [7, 11, 0])
    assert resumed == [forwards[7], forwards[11], forwards[0]]
    assert first_ids(Batches(rows(10), 4, seed=1), range(12)) != forwards


def test_more_rows_in_a_batch_than_there_are():
    batch = Batches(rows(3), 8, seed=0).batch(0)
    assert batch.tokens.shape == (8, 4) and (batch.segment_ids > 0).all()


def test_without_a_seed_rows_come_in_order_and_the_last_batch_is_filled_up():
    batches = Batches(rows(10), 4)
    got = list(batches)
    assert len(batches) == len(got) == 3
    assert [b.tokens[:, 0].tolist() for b in got] == [[2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 0, 0]]
    assert all(b.tokens.shape == (4, 4) for b in got)
    assert not got[-1].segment_ids[2:].any() and not got[-1].loss_weights[2:].any()


@pytest.mark.parametrize(("seed", "step"), [(None, 3), (None, -1), (0, -1)])
def test_steps_out_of_range_do_not_wrap_around(seed, step):
    with pytest.raises(IndexError, match=f"step {step}"):
        Batches(rows(10), 4, seed).batch(step)


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="batch_size is 0"):
        Batches(rows(3), 0)


# --- Prepare ---------------------------------------------------------------------------------


def test_prepare_accounts_for_every_document_and_byte(folder, tmp_path, documents):
    prepared = prepare(**options(folder, tmp_path))
    info = prepared.info
    assert info.train.documents + info.heldout.documents == info.corpus.documents == len(documents)
    assert info.train.bytes + info.heldout.bytes == info.corpus.bytes
    assert json.loads(json.dumps(info.as_json())) == info.as_json()

    # Held-out text and held-out rows are the same thing, and nothing of it is trained on.
    decode = prepared.tokenizer.decode
    heldout = prepared.heldout.batches.rows.stream
    assert decode(heldout.ids) == "".join(d.text for d in prepared.heldout.documents)
    trained = decode(prepared.train.rows.stream.ids)
    names = {d.name for d in prepared.heldout.documents}
    assert trained == "".join(d.text for d in documents if d.name not in names)
    assert prepared.train.rows.pad_id == prepared.tokenizer.pad_id


def test_bits_per_byte_of_a_uniform_model_by_hand(folder, tmp_path):
    prepared = prepare(**options(folder, tmp_path))
    heldout, tokenizer = prepared.heldout, prepared.tokenizer
    first_tokens = [tokenizer.encode(d.text)[0] for d in heldout.documents]
    text_bytes = sum(len(d.text.encode()) for d in heldout.documents)
    assert heldout.target_bytes == text_bytes - tokenizer.bytes_per_id[first_tokens].sum()
    weights = sum(batch.loss_weights.sum() for batch in heldout.batches)
    assert weights == heldout.targets
    uniform = heldout.targets * math.log(320)
    expected = heldout.targets * math.log2(320) / heldout.target_bytes
    assert heldout.bits_per_byte(uniform) == pytest.approx(expected)


def test_heldout_limit_shrinks_evaluation_and_not_training(folder, tmp_path):
    whole = prepare(**options(folder, tmp_path))
    limited = prepare(**options(folder, tmp_path, heldout_max_bytes=300))
    assert limited.info.heldout.bytes <= 300 < whole.info.heldout.bytes
    assert limited.info.train == whole.info.train


def test_second_call_reads_the_cache_and_gives_the_same(folder, tmp_path, monkeypatch):
    first = prepare(**options(folder, tmp_path))

    def never(*args, **kwargs):
        raise AssertionError("not from the cache")

    monkeypatch.setattr("zaya_jax.data.tokenizer.train_bpe", never)
    monkeypatch.setattr("zaya_jax.data.tokenizer.Tokenizer.encode_batch", never)
    # Row length and batch size are not in the key: they cost nothing to change.
    second = prepare(**options(folder, tmp_path, sequence_length=64, batch_size=2))
    ours, theirs = first.train.rows.stream, second.train.rows.stream
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    np.testing.assert_array_equal(ours.starts, theirs.starts)
    assert first.info.tokenizer_sha256 == second.info.tokenizer_sha256


def test_changed_text_is_not_served_from_the_cache(folder, tmp_path):
    before = prepare(**options(folder, tmp_path)).info
    (folder / "module_99.py").write_text("print('new')\n" * 9)
    after = prepare(**options(folder, tmp_path)).info
    assert before.corpus.sha256 != after.corpus.sha256
    assert after.train.bytes + after.heldout.bytes == after.corpus.bytes


@pytest.mark.parametrize("damage", ["truncated", "garbage", "wrong ids", "no field"])
def test_damaged_tokens_are_encoded_again_with_a_warning(tmp_path, documents, tokenizer, damage):
    stream = encode(documents, tokenizer, tmp_path)
    (file,) = tmp_path.glob("tokens-*.npz")
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-500])
    elif damage == "garbage":
        file.write_bytes(b"\x00" * 100)
    elif damage == "wrong ids":
        np.savez(file, ids=stream.ids + np.uint16(400), starts=stream.starts)
    else:
        np.savez(file, ids=stream.ids)
    with pytest.warns(UserWarning, match="encoding again"):
        again = encode(documents, tokenizer, tmp_path)
    np.testing.assert_array_equal(again.ids, stream.ids)
    np.testing.assert_array_equal(encode(documents, tokenizer, tmp_path).ids, stream.ids)


def test_a_given_tokenizer_is_used_and_must_fit_the_model(folder, tmp_path, tokenizer):
    tokenizer.save(tmp_path / "tokenizer")
    path = str(tmp_path / "tokenizer")
    prepared = prepare(**options(folder, tmp_path, tokenizer=path, vocab_size=512))
    assert prepared.tokenizer.sha256 == tokenizer.sha256
    assert prepared.info.vocab_size == 320
    with pytest.raises(ValueError, match="300 is smaller than the tokenizer's 320"):
        prepare(**options(folder, tmp_path, tokenizer=path, vocab_size=300))


def test_a_slice_of_the_standard_library_end_to_end(tmp_path):
    import json.decoder
    from pathlib import Path

    source = Path(json.decoder.__file__).parent
    prepared = prepare(**options(source, tmp_path, vocab_size=512, heldout_fraction=0.2))
    assert prepared.info.corpus.documents >= 5
    batch = prepared.train.batch(1000)
    assert batch.tokens.shape == (4, 32) and batch.tokens.max() < 512
    assert not list((tmp_path / "cache").glob(".*"))
