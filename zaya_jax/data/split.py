"""Which records are held out: a question that each text answers for itself.

A record's place in [0, 1) is a hash of its content alone, so copies of a text stay on one side, and
a record does not change sides when others are added.
"""

from __future__ import annotations

import hashlib

import numpy as np


def place(content: str) -> float:
    """A number in [0, 1) that looks uniform and depends on the content only."""
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:6], "little") / 2**48


def held_out(places: np.ndarray, fraction: float) -> np.ndarray:
    """Holds out about a fraction of the records.

    If the fraction would leave a side empty, the record nearest the border goes there.

    Args:
        places: [N] float64, of the records in order.
        fraction: expected share held out, between 0 and 1, exclusive.

    Returns:
        [N] bool, True for what is held out.

    Raises:
        ValueError: a fraction out of range, or fewer than two different contents.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"heldout_fraction is {fraction}; it must lie between 0 and 1")
    if not places.size or places.min() == places.max():
        raise ValueError(
            f"{places.size} document(s) with fewer than two different texts cannot be split "
            "into a training and a held-out part: give more documents"
        )
    # The border is moved, if at all, just past the lowest or down to the second highest place.
    border = min(max(fraction, places.min()), places[places < places.max()].max())
    return places <= border


def limited(places: np.ndarray, sizes: np.ndarray, maximum: int | None) -> np.ndarray:
    """Chooses records that fit in `maximum` bytes together, one at the least.

    They are tried in the order of their places, so that the choice is not one of names that begin
    with A. If none fits, the smallest is taken; a maximum of None takes them all.

    Args:
        places: [N] float64. sizes: [N] int64, bytes.
        maximum: in bytes.

    Returns:
        [N] bool, True for what is chosen.
    """
    if maximum is None:
        return np.ones(places.size, bool)
    chosen, total = np.zeros(places.size, bool), 0
    for i in np.argsort(places, kind="stable"):
        if total + sizes[i] <= maximum:
            chosen[i] = True
            total += int(sizes[i])
    if not chosen.any():
        chosen[np.argmin(sizes)] = True
    return chosen
