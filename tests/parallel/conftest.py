"""Eight virtual devices, in a process of their own: all other tests keep to one."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest

DEVICES = 8


def _run(name: str, arguments: dict):
    """In the process with the devices: calls a function of `tests.parallel.programs`."""
    import importlib

    return getattr(importlib.import_module("tests.parallel.programs"), name)(**arguments)


@pytest.fixture(scope="session")
def on_devices():
    """`on_devices(name, **arguments)` runs a function of `programs` where jax has 8 devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", f"{flags} --xla_force_host_platform_device_count={DEVICES}")
        pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        assert pool.submit(os.getpid).result() != os.getpid()  # started, under those flags
    with pool:
        yield lambda name, **arguments: pool.submit(_run, name, arguments).result()
