import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zaya_jax.data.packing import PackedRows, TokenStream

EOS = 1
corpora = st.lists(st.lists(st.integers(2, 99), max_size=25), min_size=1, max_size=12)


def pack(documents, length, pad_id=0):
    return PackedRows(TokenStream.of(documents, EOS, 100), length, pad_id)


def segments(batch):
    """Every segment as (row, its slots), in order."""
    for row, ids in enumerate(batch.segment_ids):
        for segment in range(1, ids.max(initial=0) + 1):
            yield row, np.flatnonzero(ids == segment)


@settings(max_examples=80, deadline=None)
@given(corpora, st.integers(1, 16))
def test_every_prediction_appears_exactly_once(documents, length):
    batch = pack(documents, length).all()
    weighted = batch.loss_weights > 0
    got = list(zip(batch.tokens[weighted], batch.targets[weighted], strict=True))
    closed = [[*document, EOS] for document in documents]
    expected = [pair for d in closed for pair in zip(d, d[1:], strict=False)]
    assert got == expected
    assert not batch.targets[~weighted].any()


@settings(max_examples=80, deadline=None)
@given(corpora, st.integers(1, 16))
def test_segments_are_pieces_of_documents_and_padding_is_last(documents, length):
    batch = pack(documents, length).all()
    stream = [token for document in documents for token in [*document, EOS]]
    real = batch.segment_ids > 0
    # The stream is all there, in order; padding is behind it, less than a row.
    assert batch.tokens[real].tolist() == stream
    flat = real.reshape(-1)
    assert flat[: len(stream)].all() and flat.size - len(stream) < length
    pieces = 0
    for row, slots in segments(batch):
        assert (np.diff(slots) == 1).all()
        np.testing.assert_array_equal(batch.positions[row, slots], np.arange(slots.size))
        # A segment never runs on past the end of a document.
        assert EOS not in batch.tokens[row, slots[:-1]]
        pieces += 1
    ends = np.cumsum([len(document) + 1 for document in documents])
    assert pieces == len({*ends.tolist(), *range(length, len(stream), length)})


def test_a_document_split_over_rows_by_hand():
    batch = pack([[5, 6, 7, 8], [9]], 3).all()
    np.testing.assert_array_equal(batch.tokens, [[5, 6, 7], [8, 1, 9], [1, 0, 0]])
    np.testing.assert_array_equal(batch.targets, [[6, 7, 8], [1, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(batch.segment_ids, [[1, 1, 1], [1, 1, 2], [1, 0, 0]])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2], [0, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(batch.loss_weights, [[1, 1, 1], [1, 0, 1], [0, 0, 0]])


def test_dtypes_are_those_of_the_contract():
    batch = pack([[2, 3]], 4).all()
    assert [field.dtype for field in batch] == [np.int32] * 4 + [np.float32]


def test_rows_are_independent_of_how_they_are_asked_for():
    rows = pack([list(range(2, 2 + n)) for n in (5, 1, 17, 3)], 4, pad_id=77)
    whole = rows.all()
    order = np.array([3, 0, 6, 3])
    for taken, field in zip(rows.take(order), whole, strict=True):
        np.testing.assert_array_equal(taken, field[order])


def test_rows_past_the_end_are_padding():
    rows = pack([[5, 6]], 4, pad_id=77)
    batch = rows.take(np.array([1, 10**9]))
    assert (batch.tokens == 77).all()
    assert not any(field.any() for field in batch[1:])


@pytest.mark.parametrize(
    ("ids", "starts"),
    [([], [0]), ([4, 1], [0, 1]), ([4, 1], [0, 2, 2]), ([4, 1], [1, 2]), ([4, 1], [])],
)
def test_inconsistent_streams_are_refused(ids, starts):
    with pytest.raises(ValueError, match="token stream"):
        TokenStream(np.array(ids, np.int32), np.array(starts, np.int64))


def test_ids_are_stored_narrow_where_they_fit():
    assert TokenStream.of([[2]], EOS, 2**16).ids.dtype == np.uint16
    assert TokenStream.of([[2**16]], EOS, 2**16 + 1).ids.dtype == np.int32


def test_sequence_length_must_be_positive():
    with pytest.raises(ValueError, match="sequence_length is 0"):
        pack([[2]], 0)
