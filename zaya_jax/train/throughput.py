"""How well the machine is used: rates, model FLOPs, memory, and what was compiled."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax import monitoring

from zaya_jax.config import Experiment

PEAK_TFLOPS = {
    "mi300x": 1307.0,
    "h100 pcie": 756.0,
    "h100 nvl": 835.0,
    "h100": 989.0,
    "h200": 989.0,
}
"""Dense bfloat16 peak of devices, by the first of these that is in their name; from the makers'
data sheets. The name of an SXM board says only its generation, that of a slower card says more."""

_COMPILED = "/jax/core/compile/backend_compile_duration"


def peak_flops(experiment: Experiment, device: jax.Device) -> float | None:
    """FLOP/s that MFU is a share of: `train.peak_tflops`, else a known device's; else None."""
    stated = experiment.train.peak_tflops
    if stated is None:
        kind = device.device_kind.lower()
        stated = next((peak for name, peak in PEAK_TFLOPS.items() if name in kind), None)
    return None if stated is None else stated * 1e12


def peak_memory_bytes(device: jax.Device) -> int:
    """Most memory used so far: of the device where it tells, else of this process (RSS)."""
    stats = device.memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Rate:
    """Tokens per second, over the time that was spent on steps alone."""

    def __init__(self, decay: float = 0.9):
        self._decay = decay
        self._tokens = self._seconds = self._waited = 0.0

    def add(self, tokens: float, seconds: float, waited: float = 0.0) -> None:
        """Accounts for steps done; older ones count less and less.

        Args:
          tokens: in these steps.
          seconds: that they took.
          waited: of these, spent waiting for data.
        """
        self._tokens = self._decay * self._tokens + tokens
        self._seconds = self._decay * self._seconds + seconds
        self._waited = self._decay * self._waited + waited

    @property
    def value(self) -> float:
        """Tokens per second; 0 before the first step."""
        return self._tokens / self._seconds if self._seconds else 0.0

    @property
    def waiting(self) -> float:
        """Share of the time spent waiting for data; 0 before the first step."""
        return self._waited / self._seconds if self._seconds else 0.0


class Compilations:
    """Programs that jax compiled, or read from its cache, and the seconds that took."""

    def __init__(self) -> None:
        self.count, self.seconds = 0, 0.0

    def __call__(self, event: str, seconds: float, **_: str | int) -> None:
        """Hears of an event of `jax.monitoring`."""
        if event == _COMPILED:
            self.count, self.seconds = self.count + 1, self.seconds + seconds


@contextmanager
def compilations() -> Iterator[Compilations]:
    """Counts what is compiled inside the block, by whatever thread."""
    counted = Compilations()
    monitoring.register_event_duration_secs_listener(counted)
    try:
        yield counted
    finally:
        monitoring.unregister_event_duration_listener(counted)
