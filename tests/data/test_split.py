import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zaya_jax.data.split import held_out, limited, place

texts = st.lists(st.text(min_size=1), min_size=2, max_size=30).filter(lambda t: len(set(t)) > 1)


def places(texts):
    return np.array([place(text) for text in texts])


@settings(max_examples=60, deadline=None)
@given(texts, st.floats(0.001, 0.999))
def test_both_sides_have_texts_and_share_none(texts, fraction):
    held = held_out(places(texts), fraction)
    assert held.any() and not held.all()
    sides = [{t for t, h in zip(texts, held, strict=True) if h == side} for side in (True, False)]
    assert not sides[0] & sides[1]


def test_about_the_fraction_is_held_out_and_stays_so_under_growth():
    found = places(f"text {i}" for i in range(4000))
    held = held_out(found, 0.1)
    assert 300 < held.sum() < 500
    np.testing.assert_array_equal(held_out(found[:2000], 0.1), held[:2000])


@pytest.mark.parametrize("texts", [[], ["one"], ["same", "same"]])
def test_two_texts_are_needed(texts):
    with pytest.raises(ValueError, match="cannot be split"):
        held_out(places(texts), 0.5)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match="heldout_fraction"):
        held_out(places(["a", "b"]), fraction)


def test_a_limit_takes_whole_records_while_they_fit():
    sizes = 2 * np.arange(1, 40)
    found = places(str(n) for n in sizes)
    chosen = limited(found, sizes, 300)
    total = sizes[chosen].sum()
    assert total <= 300 < total + sizes[~chosen].min()
    # Not the first ones, but those whose places come first, wherever they stand.
    assert not chosen[: chosen.sum()].all()
    np.testing.assert_array_equal(limited(found[::-1], sizes[::-1], 300), chosen[::-1])
    assert np.flatnonzero(limited(found, sizes, 1)).tolist() == [0]
    assert limited(found, sizes, None).all()
