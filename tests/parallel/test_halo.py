"""A row cut into chunks is mixed as if it were whole, and so are its gradients."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zaya_jax.parallel import context

RANKS, LENGTH = 4, 24


def positions(sizes: list[int]) -> np.ndarray:
    """[S] index of each token in its document, of documents of these sizes, repeated."""
    return np.concatenate([np.arange(size) for size in sizes * LENGTH])[:LENGTH]


@pytest.mark.parametrize("kernels", [(2, 2), (3, 2), (4,)])
@settings(max_examples=12)
@given(rows=st.lists(st.lists(st.integers(1, LENGTH), min_size=1), min_size=2, max_size=2))
def test_documents_that_begin_anywhere(on_devices, kernels, rows):
    error = on_devices(
        "halo", positions=np.stack([*map(positions, rows)]), ranks=RANKS, kernels=kernels
    )
    assert error < 1e-12


@given(ranks=st.integers(1, 16), chunk=st.integers(1, 5))
def test_every_rank_has_as_much_to_do(ranks, chunk):
    length = 2 * ranks * chunk
    at = context.order(length, ranks)
    assert sorted(at) == list(range(length))
    work = at.reshape(ranks, -1).sum(axis=1)  # keys that each token sees
    assert np.ptp(work) == 0
