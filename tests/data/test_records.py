import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zaya_jax.data.example import Example, Think
from zaya_jax.data.records import (
    Shard,
    Store,
    Table,
    from_bytes,
    id_dtype,
    to_bytes,
    write_shard,
)


@st.composite
def examples(draw):
    """Examples of any form that the format can hold."""
    ids = draw(st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=40))
    turns = draw(st.integers(0, 3))
    learn = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    thinks = draw(st.lists(st.tuples(*[st.integers(0, 40)] * 3), max_size=3 if turns else 0))
    return Example(
        np.array(ids, np.int32),
        np.array(learn) if turns else np.ones(len(ids), bool),
        tuple(Think(*think) for think in thinks),
        turns,
    )


def assert_same(a, b):
    np.testing.assert_array_equal(a.ids, b.ids)
    np.testing.assert_array_equal(a.learn, b.learn)
    assert (a.ids.dtype, a.learn.dtype, a.thinks, a.turns) == (
        b.ids.dtype, b.learn.dtype, b.thinks, b.turns
    )  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(examples(), st.sampled_from([2**16, 2**18]))
def test_records_come_back_as_they_were(example, vocab_size):
    dtype = id_dtype(vocab_size)
    assert_same(from_bytes(to_bytes(example, dtype), dtype), example)


@pytest.fixture
def shards(tmp_path):
    """Two shards of five and three examples, and the examples."""
    whole, found = [], []
    for number, count in enumerate((5, 3)):
        file = tmp_path / f"train-{number:05}-x.array_record"
        part = [
            Example(
                np.arange(2 + i, dtype=np.int32),
                np.arange(2 + i) > 0,
                (Think(1, 1 + i % 2, 0),) if i % 2 else (),
                1,
            )
            for i in range(count)
        ]
        names = [f"{number}:{i}" for i in range(count)]
        write_shard(file, part, names, Table.of(part, [9] * count, bad=number), 99)
        found.append(Shard(file.name, count, file.stat().st_size))
        whole += part
    return tmp_path, found, whole


def test_a_store_is_its_shards_end_to_end(shards):
    folder, found, whole = shards
    store = Store(folder, found, 99)
    for i in (7, 0, 5, 4, *range(8)):
        assert_same(store[i], whole[i])
    table = store.table
    assert table.lengths.tolist() == [len(example) for example in whole]
    assert list(store.names())[4:6] == ["0:4", "1:0"]
    assert table.thinks.tolist() == [
        [i, *think] for i, example in enumerate(whole) for think in example.thinks
    ]
    assert table.bad == 1
    for wrong in (-1, 8):
        with pytest.raises(IndexError):
            store[wrong]


def test_damage_is_named(shards):
    folder, found, _ = shards
    file = folder / found[1].file
    data = bytearray(file.read_bytes())
    data[100] ^= 255
    file.write_bytes(data)
    store = Store(folder, found, 99)
    assert len(store[0]) == 2
    with pytest.raises(ValueError, match="train-00001-x.array_record is damaged"):
        [store[i] for i in range(5, 8)]
    with pytest.raises(ValueError, match="is damaged: .* vocabulary"):
        Store(folder, found, 3)[3]
    file.write_bytes(data[:-1])
    with pytest.raises(ValueError, match="train-00001-x.array_record is damaged: .* bytes instead"):
        Store(folder, found, 99)
    file.unlink()
    with pytest.raises(ValueError, match="is damaged: None bytes"):
        Store(folder, found, 99)


def test_records_of_the_wrong_length_are_refused():
    dtype = id_dtype(99)
    data = to_bytes(Example(np.arange(5, dtype=np.int32), np.ones(5, bool), (), 0), dtype)
    for damaged in (data[:-1], data + b"x", data[:3]):
        with pytest.raises(ValueError, match="a record of"):
            from_bytes(damaged, dtype)
