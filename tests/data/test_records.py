import dataclasses

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zaya_jax.data import records
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
        table = Table.of(part, [9] * count, bad=number)
        found.append(write_shard(file, part, names, table, 99))
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


def test_a_shard_tells_what_was_written(shards):
    folder, found, whole = shards
    assert [Shard.at(folder / shard.file) for shard in found] == found
    assert found[0].sha256 != found[1].sha256
    assert Shard.at(folder / "train-00002-x.array_record") is None
    file = folder / found[0].file
    flipped = [dataclasses.replace(example, learn=~example.learn) for example in whole[:5]]
    names = [f"0:{i}" for i in range(5)]
    other = write_shard(file, flipped, names, Table.of(flipped, [9] * 5), 99)
    assert other.sha256 != found[0].sha256  # the mask counts, too
    file.with_suffix(".npz").write_bytes(b"PK")
    assert Shard.at(file) is None


def test_no_more_shards_are_open_than_a_process_may(shards, monkeypatch):
    folder, found, whole = shards
    monkeypatch.setattr(records, "_OPEN_FILES", 1)
    store = Store(folder, found, 99)
    before = psutil.Process().num_fds()
    for i in (0, 7, 1, 6, 2, 5):
        assert_same(store[i], whole[i])
        assert psutil.Process().num_fds() <= before + 1


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
