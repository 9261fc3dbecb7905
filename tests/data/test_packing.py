import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.in_memory import Examples, pack, text
from zaya_jax.data.example import Example, Think
from zaya_jax.data.packing import JoinedRows, in_order

EOS = 1
corpora = st.lists(st.lists(st.integers(2, 99), max_size=25), min_size=1, max_size=12)


def stream(documents, length, pad_id=0):
    return pack([text(document) for document in documents], length, "stream", pad_id)


def segments(batch):
    """Every segment as (row, its slots), in order."""
    for row, ids in enumerate(batch.segment_ids):
        for segment in range(1, ids.max(initial=0) + 1):
            yield row, np.flatnonzero(ids == segment)


@settings(max_examples=80, deadline=None)
@given(corpora, st.integers(1, 16))
def test_every_prediction_appears_exactly_once(documents, length):
    batch = stream(documents, length).all()
    weighted = batch.loss_weights > 0
    got = list(zip(batch.tokens[weighted], batch.targets[weighted], strict=True))
    closed = [[*document, EOS] for document in documents]
    expected = [pair for d in closed for pair in zip(d, d[1:], strict=False)]
    assert got == expected
    assert not batch.targets[~weighted].any()


@settings(max_examples=80, deadline=None)
@given(corpora, st.integers(1, 16))
def test_segments_are_pieces_of_documents_and_padding_is_last(documents, length):
    batch = stream(documents, length).all()
    tokens = [token for document in documents for token in [*document, EOS]]
    real = batch.segment_ids > 0
    # The stream is all there, in order; padding is behind it, less than a row.
    assert batch.tokens[real].tolist() == tokens
    flat = real.reshape(-1)
    assert flat[: len(tokens)].all() and flat.size - len(tokens) < length
    pieces = 0
    for row, slots in segments(batch):
        assert (np.diff(slots) == 1).all()
        np.testing.assert_array_equal(batch.positions[row, slots], np.arange(slots.size))
        # A segment never runs on past the end of a document.
        assert EOS not in batch.tokens[row, slots[:-1]]
        pieces += 1
    ends = np.cumsum([len(document) + 1 for document in documents])
    assert pieces == len({*ends.tolist(), *range(length, len(tokens), length)})


def test_a_document_split_over_rows_by_hand():
    batch = stream([[5, 6, 7, 8], [9]], 3).all()
    np.testing.assert_array_equal(batch.tokens, [[5, 6, 7], [8, 1, 9], [1, 0, 0]])
    np.testing.assert_array_equal(batch.targets, [[6, 7, 8], [1, 0, 1], [0, 0, 0]])
    np.testing.assert_array_equal(batch.segment_ids, [[1, 1, 1], [1, 1, 2], [1, 0, 0]])
    np.testing.assert_array_equal(batch.positions, [[0, 1, 2], [0, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(batch.loss_weights, [[1, 1, 1], [1, 0, 1], [0, 0, 0]])


def test_dtypes_are_those_of_the_contract():
    batch = stream([[2, 3]], 4).all()
    assert [field.dtype for field in batch] == [np.int32] * 4 + [np.float32]


def test_rows_are_independent_of_how_they_are_asked_for():
    rows = stream([list(range(2, 2 + n)) for n in (5, 1, 17, 3)], 4, pad_id=77)
    whole = rows.all()
    order = np.array([3, 0, 6, 3])
    for taken, field in zip(rows.take(order), whole, strict=True):
        np.testing.assert_array_equal(taken, field[order])


def test_rows_past_the_end_are_padding():
    rows = stream([[5, 6]], 4, pad_id=77)
    batch = rows.take(np.array([1, 10**9]))
    assert (batch.tokens == 77).all()
    assert not any(field.any() for field in batch[1:])


def test_sequence_length_must_be_positive():
    with pytest.raises(ValueError, match="sequence_length is 0"):
        stream([[2]], 0)


# --- Whole examples --------------------------------------------------------------------------


def turns(*lengths, think=0):
    """A conversation: per turn a question of two tokens and so many answer tokens, all different.

    With `think`, the last turn opens with so many tokens of thinking between tags 5 and 6.
    """
    ids, learn, thinks = [], [], []
    for number, length in enumerate(lengths):
        ids += [3, 4]
        learn += [False, False]
        if think and number == len(lengths) - 1:
            thinks = [Think(len(ids) + 1, len(ids) + 1 + think, number)]
            ids += [5, *range(1000, 1000 + think), 6]
            learn += [True] * (think + 2)
        ids += range(100 * (number + 1), 100 * (number + 1) + length)
        learn += [True] * length
    return Example(np.array(ids, np.int32), np.array(learn), tuple(thinks), len(lengths))


conversations = st.builds(
    lambda lengths, think: turns(*lengths, think=think),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.integers(0, 12),
)
documents_or_chats = st.lists(
    st.one_of(st.lists(st.integers(2, 99), max_size=40).map(text), conversations),
    min_size=1,
    max_size=15,
)


@settings(max_examples=80, deadline=None)
@given(documents_or_chats, st.integers(20, 45))
def test_best_fit_packs_every_token_of_every_kept_example_once(examples, length):
    rows = pack(examples, length, "best_fit")
    batch, plan = rows.all(), rows.plan
    assert plan.tokens == (batch.segment_ids > 0).sum()
    assert sum(plan.counts.values()) == len(examples)
    seen = [[] for _ in examples]
    for piece in range(plan.example.size):
        start = plan.start[piece]
        seen[plan.example[piece]] += range(start, start + plan.length[piece])
    for example, places in zip(examples, seen, strict=True):
        assert len(set(places)) == len(places)
        thoughts = {i for think in example.thinks for i in range(think.start, think.stop)}
        if not places:  # dropped: there is no way to make it fit
            assert example.turns and len(example) - len(thoughts) > length
            continue
        missing = set(range(len(example))) - set(places)
        assert missing <= thoughts  # nothing but thinking is ever cut
        assert not missing or len(places) == length


@settings(max_examples=80, deadline=None)
@given(documents_or_chats, st.integers(20, 45))
def test_segments_are_whole_examples_with_their_own_targets(examples, length):
    rows = pack(examples, length, "best_fit")
    batch = rows.all()
    whole = {example.ids.tobytes(): example for example in examples if len(example) <= length}
    found = 0
    for row, slots in segments(batch):
        assert (np.diff(slots) == 1).all()
        np.testing.assert_array_equal(batch.positions[row, slots], np.arange(slots.size))
        example = whole.get(batch.tokens[row, slots].tobytes())
        if example is None:
            continue
        found += 1
        learnt = np.append(example.learn[1:], False)
        np.testing.assert_array_equal(batch.loss_weights[row, slots], learnt)
        following = np.where(learnt, np.append(example.ids[1:], 0), 0)
        np.testing.assert_array_equal(batch.targets[row, slots], following)
    assert found >= rows.plan.counts["kept"]


def test_a_trimmed_chat_by_hand():
    # 3 4 5 1000..1005 6 100 101: twelve tokens, of which ten fit.
    batch = pack([turns(2, think=6)], 10, "best_fit").all()
    np.testing.assert_array_equal(batch.tokens, [[3, 4, 5, 1000, 1001, 1002, 1003, 6, 100, 101]])
    # What is left of the thinking is followed by its end.
    np.testing.assert_array_equal(batch.targets, [[0, 5, 1000, 1001, 1002, 1003, 6, 100, 101, 0]])
    np.testing.assert_array_equal(batch.loss_weights, [[0, 1, 1, 1, 1, 1, 1, 1, 1, 0]])
    np.testing.assert_array_equal(batch.segment_ids, [[1] * 10])
    np.testing.assert_array_equal(batch.positions, [range(10)])


def test_a_long_text_is_cut_and_its_rest_packed_with_others():
    batch = pack([text(range(10, 19)), text([7])], 6, "best_fit").all()
    np.testing.assert_array_equal(batch.tokens, [range(10, 16), [16, 17, 18, 1, 7, 1]])
    # The last target of the cut piece is the token behind the cut.
    np.testing.assert_array_equal(batch.targets, [range(11, 17), [17, 18, 1, 0, 1, 0]])
    np.testing.assert_array_equal(batch.segment_ids, [[1] * 6, [1, 1, 1, 1, 2, 2]])


@pytest.mark.parametrize("packing", ["stream", "best_fit"])
def test_rows_of_several_sources_are_those_of_each(packing):
    parts = [
        pack([text(range(10 * i, 10 * i + 3 + i)) for _ in range(4 + i)], 8, packing, pad_id=77)
        for i in range(1, 4)
    ]
    joined = JoinedRows(parts)
    whole = [np.concatenate(fields) for fields in zip(*(p.all() for p in parts), strict=True)]
    order = np.array([*reversed(range(len(joined))), len(joined) + 5])
    batch = joined.take(order)
    for field, expected in zip(batch, whole, strict=True):
        np.testing.assert_array_equal(field[:-1], expected[order[:-1]])
    assert not batch.segment_ids[-1].any() and (batch.tokens[-1] == 77).all()
    several = [np.concatenate(fields) for fields in zip(*in_order(joined, 3), strict=True)]
    for field, expected in zip(several, whole, strict=True):
        np.testing.assert_array_equal(field, expected)


def test_nothing_to_pack():
    rows = pack([turns(9), turns(9)], 5, "best_fit")
    assert len(rows) == 0 and rows.plan.counts["dropped"] == 2
    with pytest.raises(ValueError, match="no example to pack"):
        pack([], 5)
    assert len(Examples([])) == 0
