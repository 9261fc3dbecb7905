"""Kernels are compiled where a GPU is attached, and interpreted elsewhere.

A test that runs one, marked `kernel` or parametrised with "triton", is there a `gpu` test too:
`make test-gpu` runs it as compiled, and a machine without a GPU still runs it interpreted.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pallas_kernels import dispatch, interpret

HERE = Path(__file__).parent


def compiled() -> bool:
    """Whether kernels run here as a GPU has them."""
    return dispatch.platform() in ("cuda", "rocm")


def runs_a_kernel(item: pytest.Item) -> bool:
    drawn = item.callspec.params.values() if hasattr(item, "callspec") else ()
    named = any(isinstance(value, str) and value == "triton" for value in drawn)
    return named or item.get_closest_marker("kernel") is not None


@pytest.hookimpl(tryfirst=True)  # before `-m gpu` leaves out what it does not know
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    own = [item for item in items if HERE in item.path.parents and runs_a_kernel(item)]
    if own and compiled():
        for item in own:
            item.add_marker("gpu")


@pytest.fixture(autouse=True, scope="module")
def interpreted():
    with pytest.MonkeyPatch.context() as patch:
        if not compiled():
            patch.setenv(interpret.VARIABLE, "1")
        yield
