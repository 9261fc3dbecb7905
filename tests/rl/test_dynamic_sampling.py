import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.rl.dynamic_sampling import fill, informative


def test_only_groups_with_a_contrast_are_kept():
    rewards = np.array(
        [[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, np.nan, 1], [np.nan, np.nan, 1], [1, 0, np.nan]]
    )
    assert informative(rewards).tolist() == [False, False, True, False, False, True]


@given(st.lists(st.lists(st.booleans(), max_size=7), max_size=8), st.integers(1, 5))
def test_batches_fill_in_order_and_nothing_is_lost(calls, want):
    held, batches, dropped, number = (), [], 0, 0
    kept_numbers = []
    for kept in calls:
        arrived = list(range(number, number + len(kept)))
        number += len(kept)
        kept_numbers += [i for i, keep in zip(arrived, kept, strict=True) if keep]
        filling = fill(held, arrived, np.array(kept, bool), want)
        held, dropped = filling.held, dropped + filling.dropped
        if filling.batch is not None:
            assert len(filling.batch) == want
            batches += filling.batch
    assert [*batches, *held] == kept_numbers and dropped == number - len(kept_numbers)
