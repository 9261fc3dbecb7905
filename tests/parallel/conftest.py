"""Eight virtual devices, in a process of their own: all other tests keep to one."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest

DEVICES = 8


def _run(name: str, arguments: dict):
    """In the process with the devices: calls a function of `tests.parallel.programs`."""
    import importlib

    return getattr(importlib.import_module("tests.parallel.programs"), name)(**arguments)


class _Devices:
    """The process with the devices; another one after one that has crashed."""

    def __init__(self) -> None:
        self._pool = self._start()

    def __call__(self, name: str, **arguments):
        try:
            return self._pool.submit(_run, name, arguments).result()
        except BrokenProcessPool:  # this test fails, and the next one has a process
            self.close()
            self._pool = self._start()
            raise

    def close(self) -> None:
        self._pool.shutdown()

    def _start(self) -> ProcessPoolExecutor:
        flags = os.environ.get("XLA_FLAGS", "")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XLA_FLAGS", f"{flags} --xla_force_host_platform_device_count={DEVICES}")
            pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
            assert pool.submit(os.getpid).result() != os.getpid()  # started, under those flags
        return pool


@pytest.fixture(scope="session")
def on_devices():
    """`on_devices(name, **arguments)` runs a function of `programs` where jax has 8 devices."""
    devices = _Devices()
    yield devices
    devices.close()
