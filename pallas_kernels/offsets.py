"""Arrays that a Triton kernel cannot address.

jax's lowering for Triton counts offsets in elements, but chooses their width by bytes: 64 bits for
an array of more than 2^32 bytes, else 32 (`_compute_offsets_from_indices` of
`jax/_src/pallas/triton/lowering.py`, jax 0.10.2). So of numbers of one byte, more than 2^31 and up
to 2^32 of them have offsets that wrap around.
"""

from __future__ import annotations

from typing import Any

MOST = 2**31  # elements that offsets of 32 bits reach
WIDE = 2**32  # bytes above which offsets have 64 bits


def lacks(name: str, *arrays: Any) -> str | None:
    """What is to be said of the first of `arrays` whose offsets wrap around; None if none's do."""
    for array in arrays:
        if array.size > MOST and array.size * array.dtype.itemsize <= WIDE:
            size = f"{array.size / 2**30:.3g} GiB"
            return f"{name} of up to 2 GiB in numbers of one byte, or of more than 4, not {size}"
    return None
