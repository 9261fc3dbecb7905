"""What the machine can do at best, measured: the floors that every other figure is held against."""

from __future__ import annotations

import time
from collections.abc import Callable

import jax
import jax.numpy as jnp


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one call, its result waited for."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def matmul_peak(dtype=jnp.float32, size: int = 2048, tries: int = 5) -> float:
    """FLOP/s of a square matmul, the best of `tries`."""
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(lambda a: a @ a)
    seconds(lambda: multiply(a))
    return 2 * size**3 / min(seconds(lambda: multiply(a)) for _ in range(tries))


def read_bandwidth(megabytes: int = 256, tries: int = 5) -> float:
    """Bytes/s of reading a matrix once in a matrix-vector product, the best of `tries`."""
    rows = megabytes * 2**20 // 4 // 4096
    a = jnp.ones((rows, 4096), jnp.float32)
    v = jnp.ones((4096,), jnp.float32)
    multiply = jax.jit(lambda a, v: a @ v)
    seconds(lambda: multiply(a, v))
    return a.nbytes / min(seconds(lambda: multiply(a, v)) for _ in range(tries))


def interleave(sides: dict[str, Callable[[], object]], pairs: int) -> dict[str, list[float]]:
    """Seconds of each side, measured in turns whose order alternates, so that drift of the machine
    falls on all sides alike. Each side is called once before, unmeasured."""
    for run in sides.values():
        seconds(run)
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for pair in range(pairs):
        order = list(sides) if pair % 2 == 0 else list(reversed(sides))
        for name in order:
            taken[name].append(seconds(sides[name]))
    return taken
