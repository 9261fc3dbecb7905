"""What the checks of ops share: arrays beside the shapes that they must have."""

from __future__ import annotations

from collections.abc import Mapping

import jax


def match(op: str, wanted: Mapping[str, tuple[jax.Array | None, tuple[int, ...]]]) -> None:
    """Raises ValueError, with what `op` wants and what was given, for an array of another shape.

    Args:
      wanted: by name, an array (None where there is none) and its shape.
    """
    for name, (array, shape) in wanted.items():
        if array is not None and array.shape != shape:
            raise ValueError(f"{op}: {name} must be {list(shape)}; got {array.shape}")
