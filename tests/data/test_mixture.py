import json
import math
from collections import Counter
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.in_memory import pack, text
from zaya_jax.config import ConfigError, Data, Experiment, from_dict, to_dict
from zaya_jax.config.checks import check_mixture
from zaya_jax.data.entries import MIXTURE, resolve
from zaya_jax.data.mixture import Batches, join


@lru_cache
def rows(count, length=4, first=2):
    """Row i is a whole document of id `first + i`."""
    return pack([text([first + i] * (length - 1)) for i in range(count)], length)


def first_ids(batches, steps):
    return [batches.batch(step).tokens[:, 0].tolist() for step in steps]


# --- One source ------------------------------------------------------------------------------


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


# --- Several sources -------------------------------------------------------------------------


def mixture(sizes, weights, batch_size=4, seed=0, schedule=()):
    """Source i, from 1, has ids 10,000 i and up; shuffling is slow where rows are few."""
    parts = [rows(size, first=10_000 * (i + 1)) for i, size in enumerate(sizes)]
    return Batches(join(parts), batch_size, seed, weights, schedule)


@pytest.mark.parametrize("weights", [(3, 1), (0.2, 0.8), (1, 1), (5, 0.3)])
def test_every_stretch_of_rows_has_the_shares_of_the_weights(weights):
    batches = mixture((1100, 1030), weights)
    seen = np.array(sum(first_ids(batches, range(100)), [])) // 10_000
    share = weights[0] / sum(weights)
    taken = np.cumsum(seen == 1)
    assert np.abs(taken - share * np.arange(1, taken.size + 1)).max() < 3  # of 400 rows


def test_each_source_goes_through_its_own_epochs():
    batches = mixture((40, 10), (1, 1))
    seen = sum(
        first_ids(batches, range(20)), []
    )  # 80 rows: one epoch of the one, four of the other
    counts = Counter(seen)
    assert {counts[10_000 + i] for i in range(40)} == {1}
    assert {counts[20_000 + i] for i in range(10)} == {4}
    small = [i for i in seen if i >= 20_000]
    assert len({tuple(small[i : i + 10]) for i in range(0, 40, 10)}) == 4


def test_a_batch_of_a_mixture_depends_on_seed_and_step_alone():
    forwards = first_ids(mixture((1100, 1030, 1025), (1, 2, 3)), range(12))
    resumed = first_ids(mixture((1100, 1030, 1025), (1, 2, 3)), [7, 11, 0])
    assert resumed == [forwards[7], forwards[11], forwards[0]]
    assert first_ids(mixture((1100, 1030, 1025), (1, 2, 3), seed=1), range(12)) != forwards
    # Smaller batches, as other processes would make them, are parts of the larger.
    halves = first_ids(mixture((1100, 1030, 1025), (1, 2, 3), batch_size=2), range(24))
    assert [a + b for a, b in zip(halves[::2], halves[1::2], strict=True)] == forwards


def test_the_first_source_of_a_mixture_is_shuffled_as_it_is_alone():
    alone = sum(first_ids(Batches(rows(50, first=10_000), 4, seed=3), range(10)), [])
    mixed = sum(first_ids(mixture((50, 50), (1, 1), seed=3), range(20)), [])
    assert [i for i in mixed if i < 20_000] == alone


def test_a_mixture_in_order_is_source_after_source():
    batches = Batches(join([rows(3, first=100), rows(2, first=200)]), 4)
    assert first_ids(batches, range(2)) == [[100, 101, 102, 200], [201, 0, 0, 0]]


# --- Weights that change ---------------------------------------------------------------------


def sources(batches, steps):
    """The source of every row, from 1: [steps, B]."""
    return np.array(first_ids(batches, steps)) // 10_000


weight = st.sampled_from([0, 0, 0.3, 1, 2.5])
weights_of_three = st.lists(weight, min_size=3, max_size=3).filter(any)
schedules = st.lists(st.tuples(st.integers(1, 8), weights_of_three), max_size=2)


@settings(max_examples=50, deadline=None)
@given(weights_of_three, schedules, st.integers(0, 3))
def test_every_stretch_has_its_shares_and_sources_go_on_where_they_were(weights, later, seed):
    steps = np.cumsum([step for step, _ in later]).tolist()
    schedule = list(zip(steps, (w for _, w in later), strict=True))
    end = (steps or [0])[-1] + 8
    batches = mixture((1050, 1040, 1030), weights, seed=seed, schedule=schedule)
    seen = sources(batches, range(end))
    for start, stop, shares in zip([0, *steps], [*steps, end], [weights, *(w for _, w in later)],
                                   strict=True):  # fmt: skip
        rows = seen[start:stop].ravel()
        for source, share in enumerate(shares, 1):
            taken = np.cumsum(rows == source) - share / sum(shares) * np.arange(1, rows.size + 1)
            assert np.abs(taken).max() < 3
            assert share or not (rows == source).any()
    # What a source gives, put together, is what it gives alone.
    drawn = np.array(first_ids(batches, range(end))).ravel()
    for source in (1, 2, 3):
        mine = drawn[drawn // 10_000 == source].tolist()
        alone = mixture((1050, 1040, 1030), np.eye(3)[source - 1].tolist(), seed=seed)
        assert mine == sum(first_ids(alone, range(-(-len(mine) // 4))), [])[: len(mine)]


def test_epochs_go_on_across_a_switch():
    batches = mixture((40, 10), (1, 1), schedule=((3, (0, 1)), (5, (3, 1))))
    drawn = sum(first_ids(batches, range(15)), [])  # 6 + 0 + 30 rows of the one, 6 + 8 + 10
    small = [i for i in drawn if i >= 20_000]
    assert [len(set(small[i : i + 10])) for i in (0, 10)] == [10, 10]
    assert len(set(drawn) - set(small)) == len(drawn) - len(small) == 36


def test_a_batch_depends_on_its_step_alone_across_a_switch():
    def make(schedule=((5, (0, 1)), (9, (1, 1))), **options):
        return mixture((40, 30), (1, 0), schedule=schedule, **options)

    forwards = first_ids(make(), range(12))
    assert first_ids(make(), [9, 4, 5, 11]) == [forwards[i] for i in (9, 4, 5, 11)]
    halves = first_ids(make(schedule=((10, (0, 1)), (18, (1, 1))), batch_size=2), range(24))
    assert [a + b for a, b in zip(halves[::2], halves[1::2], strict=True)] == forwards
    # Up to a switch nothing tells of it.
    assert first_ids(make(schedule=()), range(5)) == forwards[:5]
    assert (sources(make(), range(5)) == 1).all() and (sources(make(), range(5, 9)) == 2).all()
    assert (sources(make(), range(9, 20)) == 1).sum() == 22


def test_a_switch_late_in_a_long_run_is_found_at_once():
    batches = mixture((1100, 1030), (1, 3), batch_size=64, schedule=((10**9, (1, 0)),))
    assert (sources(batches, [10**9 - 1]) == 1).sum() == 16
    assert (sources(batches, [10**9]) == 1).all()


TWO = (("a", 1.0), ("b", 2.0))


@pytest.mark.parametrize(
    ("mixture", "schedule", "message"),
    [
        ((), ((5, (1.0,)),), "there is no data.mixture whose weights could change"),
        (TWO, ((0, (1, 1)),), "step 0: expected steps from 1 on"),
        (TWO, ((5, (1, 1)), (5, (1, 2))), "step 5: .* each later than the one before"),
        (TWO, ((5, (1, 1)), (4, (1, 2))), "step 4: .* each later than the one before"),
        (TWO, ((5, (1, 1, 1)),), "step 5: 3 weights for the 2 of data.mixture"),
        (TWO, ((5, (1, -1)),), "step 5 has weight -1: expected 0 or more"),
        (TWO, ((5, (1, math.inf)),), "step 5 has weight inf"),
        (TWO, ((5, (1, math.nan)),), "step 5 has weight nan"),
        (TWO, ((5, (0, 0)),), "step 5: all weights are 0"),
        (TWO, (5, (1, 1)), r"has 5: expected \(step, \(weight, ...\)\)"),
        (TWO, ((5.0, (1, 1)),), r"has \(5.0, \(1, 1\)\): expected \(step"),
        (TWO, ((5, ("1", 1)),), r"expected \(step, \(weight"),
        ((("a", 1.0), ("b", 0.0)), ((5, (1, 0)),), "'b' has weight 0 from beginning to end"),
        ((("a", 1.0), ("b", 0.0)), (), "'b' has weight 0.0: expected more than 0"),
        ((("a", 0.0), ("b", 0.0)), ((5, (1, 1)),), "data.mixture: all weights are 0"),
        ((("a", 1.0), ("b", 2e4)), (), "weights 20000 and 1: expected at most 10,000 to 1"),
        (TWO, ((5, (1e-5, 1)),), "step 5 has weights 1 and 1e-05: expected at most 10,000 to 1"),
    ],
)
def test_mistakes_in_a_schedule(mixture, schedule, message):
    plain = to_dict(Experiment()) | {"data": {"mixture": mixture, "mixture_schedule": schedule}}
    with pytest.raises(ConfigError, match=message):
        from_dict(plain)


def test_weights_may_be_ten_thousand_to_one():
    data = Data(mixture=(("a", 1.0), ("b", 1e-4)), mixture_schedule=((5, (0.0, 1.0)),))
    assert not list(check_mixture(data))


def write(folder, **weights):
    """A prepared mixture, as far as its index goes."""
    sources = [{"folder": f"0-{n}", "source": n, "weight": w} for n, w in weights.items()]
    folder.mkdir(exist_ok=True)
    (folder / MIXTURE).write_text(json.dumps({"sources": sources}))
    return str(folder)


def test_a_source_of_a_prepared_mixture_that_never_comes_is_refused(tmp_path):
    prepared = write(tmp_path, a=1.0, b=0.0)
    with pytest.raises(ValueError, match="0-b' has weight 0 from beginning to end"):
        resolve(Data(source=prepared))
    mixture = (("a", 1.0), ("b", 0.0))
    data = Data(source=prepared, mixture=mixture, mixture_schedule=((5, (0.0, 1.0)),))
    assert [entry.weights for entry in resolve(data)] == [(1, 0), (0, 1)]
    with pytest.raises(ValueError, match="is damaged: .*no source has a weight"):
        resolve(Data(source=write(tmp_path, a=0.0, b=0.0)))


def test_prepared_mixtures_in_a_mixture_may_not_be_too_far_apart(tmp_path):
    prepared = write(tmp_path, a=1.0, b=1000.0)
    assert len(resolve(Data(mixture=((prepared, 1.0), ("c", 1.0))))) == 3
    with pytest.raises(ValueError, match="with prepared ones in it, .* at most 10,000 to 1"):
        resolve(Data(mixture=((prepared, 1.0), ("c", 100.0))))


def test_a_source_may_begin_with_no_weight_if_it_comes_in_later():
    data = Data(mixture=(("a", 1.0), ("b", 0.0)), mixture_schedule=((5, (0.0, 1.0)),))
    assert not list(check_mixture(data))
    # As a flag or a config.json gives it.
    plain = {"data": {"mixture": [["a", 1.0], ["b", 0]], "mixture_schedule": [[5, [0, 1.0]]]}}
    assert from_dict(plain).data == data
