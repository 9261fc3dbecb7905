import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.data.best_fit import pack

CAPACITY = 131072


def textbook(lengths, capacity):
    """Best fit decreasing as it is defined, in quadratic time: bins as lists of numbers."""
    bins, rooms, since = [], [], []  # since: when a bin came to its room
    for clock, i in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
        fitting = [b for b, room in enumerate(rooms) if room >= lengths[i]]
        if fitting:
            b = min(fitting, key=lambda b: (rooms[b], since[b]))
        else:
            b = len(bins)
            bins.append([])
            rooms.append(capacity)
            since.append(clock)
        bins[b].append(i)
        rooms[b] -= lengths[i]
        since[b] = clock
    return bins


problems = st.integers(1, 40).flatmap(
    lambda capacity: st.tuples(st.lists(st.integers(1, capacity), max_size=80), st.just(capacity))
)


@given(problems)
def test_it_is_best_fit_decreasing(problem):
    lengths, capacity = problem
    bins = pack(lengths, capacity)
    assert [bins[b].tolist() for b in range(len(bins))] == textbook(lengths, capacity)


@given(st.integers(0, 2**32), st.integers(1, 3000), st.sampled_from([700, 4096, CAPACITY]))
def test_every_example_is_packed_once_and_no_bin_overflows(seed, n, capacity):
    generator = np.random.default_rng(seed)
    lengths = np.clip(generator.lognormal(np.log(capacity) - 2, 1.5, n), 1, capacity).astype(int)
    bins = pack(lengths, capacity)
    assert sorted(bins.order.tolist()) == list(range(n))
    loads = bins.loads(lengths)
    assert loads.max() <= capacity and loads.min() > 0 and loads.sum() == lengths.sum()
    assert (bins.starts[0], bins.starts[-1]) == (0, n)
    # All bins but one are more than half full, or two could have been one.
    assert (loads * 2 <= capacity).sum() <= 1


def test_no_examples_make_no_bins():
    bins = pack([], 8)
    assert len(bins) == 0 and bins.starts.tolist() == [0] and bins.loads([]).size == 0


def test_a_million_lengths_are_packed_in_seconds():
    lengths = np.random.default_rng(0).integers(1, CAPACITY + 1, 10**6)
    start = time.process_time()
    bins = pack(lengths, CAPACITY)
    assert time.process_time() - start < 15  # 1.2 s on one quiet core
    assert lengths.sum() / (len(bins) * CAPACITY) > 0.998


@pytest.mark.parametrize(
    ("capacity", "draw"),
    [
        (4096, lambda g, n: g.lognormal(6.5, 1, n)),
        (32768, lambda g, n: g.lognormal(8, 1.2, n)),
        (CAPACITY, lambda g, n: g.integers(1, CAPACITY + 1, n)),
        (4096, lambda g, n: g.choice([7, 1366, 1365, 2049], n)),
    ],
)
def test_as_few_bins_as_trl(capacity, draw):
    data_utils = pytest.importorskip("trl.data_utils")
    arrow = pytest.importorskip("pyarrow")
    lengths = np.clip(draw(np.random.default_rng(1), 150), 1, capacity).astype(np.int64)
    offsets = arrow.array(np.concatenate([[0], np.cumsum(lengths)]), arrow.int64())
    values = arrow.array(np.repeat(np.arange(lengths.size, dtype=np.int16), lengths))
    table = arrow.table({"ids": arrow.LargeListArray.from_arrays(offsets, values)})
    theirs = data_utils._pack_bfd(table, capacity)
    bins = pack(lengths, capacity)
    assert len(bins) == theirs.num_rows
    # Not the number alone: how full the bins are is the same, too.
    sizes = np.diff(theirs["ids"].combine_chunks().offsets.to_numpy())
    np.testing.assert_array_equal(np.sort(bins.loads(lengths)), np.sort(sizes))


@pytest.mark.parametrize(
    ("lengths", "capacity", "message"),
    [
        ([3, 9, 10], 8, r"example 1 has 9 tokens; a bin takes 1 to 8 \(2 of 3 examples"),
        ([3, 0], 8, "example 1 has 0 tokens"),
        ([3], 0, "capacity is 0 tokens"),
        ([[3]], 8, r"shape \(1, 1\)"),
    ],
)
def test_what_cannot_be_packed_is_refused(lengths, capacity, message):
    with pytest.raises(ValueError, match=message):
        pack(lengths, capacity)


def test_a_bin_out_of_range():
    with pytest.raises(IndexError, match="bin 1 is not below 1"):
        pack([1], 1)[1]
