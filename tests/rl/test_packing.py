"""Rows of microbatches, and what is refused before it gets into one."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rl.make import rollout
from zaya_jax.errors import UserError
from zaya_jax.rl.packing import balance, pack
from zaya_jax.rl.rollout import check


@given(st.lists(st.integers(1, 64), max_size=40), st.integers(64, 200), st.sampled_from([1, 2, 3]))
def test_every_rollout_is_in_one_row_and_rows_are_within_the_budget(lengths, budget, multiple):
    rows = balance(lengths, budget, multiple=multiple)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= budget for row in rows)
    assert len(rows) % multiple == 0
    fewest = max(1, -(-sum(lengths) // budget))
    assert len(rows) <= max(multiple, 2 * fewest + multiple)


def test_loads_are_even():
    lengths = np.random.default_rng(0).integers(1, 1000, 200).tolist()
    rows = balance(lengths, 8192, multiple=4)
    loads = [sum(lengths[i] for i in row) for row in rows]
    assert max(loads) - min(loads) < 0.05 * max(loads)


def test_a_rollout_longer_than_a_microbatch_is_told():
    with pytest.raises(UserError, match="rollout 1 has 9 tokens; a microbatch holds 8"):
        balance([3, 9], 8)


@given(st.integers(0, 1000), st.integers(1, 6))
def test_rows_say_what_each_rollout_says(seed, count):
    rollouts = [rollout(seed + i, versions=i, routes=True) for i in range(count)]
    advantages = [float(i) - 1 for i in range(count)]
    rows = balance([r.inputs for r in rollouts], 32)
    packed = pack(rollouts, advantages, rows, 32, layers=3)
    for row, members in enumerate(rows):
        begin = 0
        for segment, i in enumerate(members, start=1):
            r, end = rollouts[i], begin + rollouts[i].inputs
            ids = np.concatenate([r.prompt, r.completion])
            here = slice(begin, end)
            np.testing.assert_array_equal(packed.tokens[row, here], ids[:-1])
            learnt = packed.loss_weights[row, here] > 0
            assert learnt.sum() == len(r.completion)
            for field, values in [
                (packed.targets, r.completion),
                (packed.rollout_logprobs, r.logprobs),
                (packed.versions, r.versions),
            ]:
                np.testing.assert_array_equal(field[row, here][learnt], values)
            assert set(packed.advantages[row, here][learnt]) == {advantages[i]}
            np.testing.assert_array_equal(packed.positions[row, here], np.arange(r.inputs))
            assert set(packed.segment_ids[row, here]) == {segment}
            np.testing.assert_array_equal(packed.routes[row, here], r.routes)
            begin = end
        assert not packed.segment_ids[row, begin:].any()
        assert not packed.loss_weights[row, begin:].any()
    assert packed.loss_weights.sum() == sum(len(r.completion) for r in rollouts)


GOOD = rollout(0, routes=True, prompt=4, tokens=6)


def test_a_good_rollout_passes():
    check(GOOD, budget=6, layers=3, experts=4)
    check(dataclasses.replace(GOOD, routes=None), budget=6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"completion": GOOD.completion[:0]}, "has 0 tokens"),
        ({"completion": np.ones(7, np.int32)}, "has 7 tokens; the budget of a response is 1 to 6"),
        ({"prompt": GOOD.prompt[:0]}, "empty prompt"),
        ({"logprobs": GOOD.logprobs[:-1]}, "6 tokens has 5 logprobs"),
        ({"logprobs": np.full(6, np.nan, np.float32)}, "not finite"),
        ({"logprobs": np.full(6, 0.5, np.float32)}, "above 0"),
        ({"versions": GOOD.versions[:-1]}, "6 tokens has 5 versions"),
        ({"routes": GOOD.routes[:-1]}, r"\(8, 3\); 4 \+ 6 - 1 tokens and 3 layers make \(9, 3\)"),
        ({"routes": GOOD.routes[:, :2]}, "3 layers"),
        ({"routes": None}, "router replay is on"),
        ({"routes": GOOD.routes + 4}, "there are 4"),
    ],
)
def test_what_a_trainer_must_not_learn_from_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        check(dataclasses.replace(GOOD, **change), budget=6, layers=3, experts=4)


def test_packing_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="needs 9 positions; it has 8"):
        pack([GOOD], [0.0], [[0]], 8)
    with pytest.raises(ValueError, match="no routes of 2 layers"):
        pack([GOOD], [0.0], [[0]], 16, layers=2)
