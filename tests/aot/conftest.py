"""Compilers for the tests, one process each; skipped, with the reason, where wheels are missing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from zaya_jax import aot


@pytest.fixture(scope="session", params=list(aot.TARGETS))
def compiler(request) -> Iterator[aot.Compiler]:
    """For each target in turn."""
    reason = aot.unavailable(aot.target_of(request.param))
    if reason is not None:
        pytest.skip(reason)
    with aot.Compiler(request.param) as compiler:
        yield compiler
