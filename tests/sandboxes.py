"""Where tests need the sandbox: skipped on a machine without one, failed where it must be there."""

from __future__ import annotations

import os

import pytest

from zaya_jax.sandbox import SandboxUnavailable, require


def needed() -> None:
    """Skips the test where there is no sandbox; in continuous integration, fails it."""
    try:
        require()
    except SandboxUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
