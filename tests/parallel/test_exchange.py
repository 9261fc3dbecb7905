"""Tokens reach their experts and come back, whatever the loads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

RANKS, TOKENS, EXPERTS = 4, 12, 8


def loads(kind: str, numbers: list[int]) -> np.ndarray:
    """[RANKS * TOKENS]: any choice of experts; the class behind them is none."""
    drawn = np.random.default_rng(numbers).integers(0, EXPERTS + 1, RANKS * TOKENS)
    if kind == "one expert":
        return np.full_like(drawn, numbers[0] % EXPERTS)
    if kind == "one device":
        return drawn % (EXPERTS // RANKS) + numbers[0] % RANKS * (EXPERTS // RANKS)
    if kind == "nowhere":
        return np.full_like(drawn, EXPERTS)
    if kind == "one device sends nothing":
        drawn[:TOKENS] = EXPERTS
    return drawn


KINDS = ("any", "one expert", "one device", "nowhere", "one device sends nothing")


@pytest.mark.parametrize("how", ["padded", "ragged"])
@settings(max_examples=12)
@given(
    kind=st.sampled_from(KINDS),
    numbers=st.lists(st.integers(0, 2**16), min_size=1, max_size=2),
)
def test_experts_over_devices_are_those_of_one(on_devices, how, kind, numbers):
    index = loads(kind, numbers)[:, None]
    error = on_devices("exchange", index=index, experts_=EXPERTS, ranks=RANKS, kind=how, room=1.25)
    assert error < 1e-12


@pytest.mark.parametrize("how", ["padded", "ragged"])
@pytest.mark.parametrize("room", [0.01, 4.0], ids=["many turns", "one turn"])
def test_any_room_and_two_choices(on_devices, how, room):
    index = np.random.default_rng(0).integers(0, EXPERTS + 1, (RANKS * TOKENS, 2))
    error = on_devices("exchange", index=index, experts_=EXPERTS, ranks=RANKS, kind=how, room=room)
    assert error < 1e-12
