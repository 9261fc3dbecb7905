"""Most of these tests run programs in the sandbox."""

from __future__ import annotations

import pytest

from tests import sandboxes


@pytest.fixture(autouse=True, scope="session")
def sandbox() -> None:
    """Skips them where there is none."""
    sandboxes.needed()
