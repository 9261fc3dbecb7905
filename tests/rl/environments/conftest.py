"""These tests run programs in the sandbox."""

from __future__ import annotations

import pytest

from tests import sandboxes
from zaya_jax.rl.environments import generate
from zaya_jax.rl.environments.seeds import Seed


@pytest.fixture(autouse=True, scope="session")
def sandbox() -> None:
    """Skips them where there is none."""
    sandboxes.needed()


@pytest.fixture(scope="session")
def few() -> list[Seed]:
    """Three generated seeds, the last of which reads and prints."""
    return list(generate.seeds(3, seed=7))
