"""The definition."""

from __future__ import annotations

import jax


def projections(x: jax.Array, weights: tuple[jax.Array, ...]) -> list[jax.Array]:
    """See the package."""
    return [x @ w for w in weights]
