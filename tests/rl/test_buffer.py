"""What waits between generation and training: fresh, bounded, and the same after a restart."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rl.make import rollout
from zaya_jax.errors import UserError
from zaya_jax.rl.buffer import Buffer, from_arrays, put, take, to_arrays
from zaya_jax.rl.rollout import Group, staleness


def group(number: int, versions=(0, 0)) -> Group:
    made = tuple(rollout(number + i, versions=v) for i, v in enumerate(versions))
    return Group(f"task-{number}", "source", made, np.array([1.0, np.nan])[: len(versions)])


def names(groups) -> list[str]:
    return [g.task for g in groups]


def test_the_oldest_make_room():
    buffer = put(Buffer(capacity=3), [group(i) for i in range(5)])
    assert names(buffer.groups) == ["task-2", "task-3", "task-4"] and buffer.evicted == 2


def test_batches_come_oldest_first_and_wait_until_they_are_full():
    buffer = put(Buffer(capacity=4), [group(0), group(1), group(2)])
    batch, buffer = take(buffer, 2, version=0)
    assert names(batch) == ["task-0", "task-1"] and names(buffer.groups) == ["task-2"]
    batch, buffer = take(buffer, 2, version=0)
    assert batch is None and names(buffer.groups) == ["task-2"]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.integers(0, 3), st.integers(1, 4))
def test_what_is_learnt_is_never_staler_than_the_bound(versions, bound, want):
    now = max(versions)
    buffer = put(Buffer(12, bound), [group(i, (v, now)) for i, v in enumerate(versions)])
    batch, left = take(buffer, want, now)
    fresh = sum(v >= now - bound for v in versions)
    for g in (*(batch or ()), *left.groups):
        assert staleness(g, now) <= bound
    assert (batch is not None) == (fresh >= want)
    assert left.stale == len(versions) - fresh


def test_a_token_sampled_before_a_swap_makes_its_group_as_old_as_it_is():
    swapped = rollout(0, versions=[3, 3, 4, 5])
    assert staleness(Group("t", "s", (swapped, rollout(1, versions=5)), np.zeros(2)), 6) == 3


@pytest.mark.parametrize("routes", [True, False])
def test_a_checkpoint_brings_back_every_bit(routes):
    made = [
        Group(f"t{i}", "é", tuple(rollout(10 * i + j, routes=routes) for j in range(3)), np.ones(3))
        for i in range(4)
    ]
    buffer = put(Buffer(3, bound=1, stale=7), made)
    file = io.BytesIO()
    np.savez(file, **to_arrays(buffer))
    file.seek(0)
    again = from_arrays(np.load(file))
    first, second = to_arrays(buffer), to_arrays(again)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
        assert first[name].dtype == second[name].dtype
    assert (again.capacity, again.bound, again.evicted, again.stale) == (3, 1, 1, 7)
    assert again.groups[0].rollouts[1].finish == buffer.groups[0].rollouts[1].finish
    empty = from_arrays(to_arrays(Buffer(2)))
    assert empty == Buffer(2)


def test_a_damaged_checkpoint_is_told():
    arrays = to_arrays(put(Buffer(2), [group(0)]))
    with pytest.raises(UserError, match="damaged"):
        from_arrays(arrays | {"versions": arrays["versions"][:-1]})
    with pytest.raises(UserError, match="damaged"):
        from_arrays({"about": np.zeros(3, np.uint8)})


def test_mistakes_are_told():
    with pytest.raises(UserError, match="capacity"):
        Buffer(0)
    with pytest.raises(UserError, match="staleness"):
        Buffer(1, bound=-1)
    with pytest.raises(UserError, match="never fits"):
        take(Buffer(2), 3, 0)
