"""Settings of kernels: block sizes, warps and stages, by platform, in a file beside each kernel.

`<op>/tuned.json` maps a platform (`rocm`, `cuda`) to kernels and each kernel to its settings:

    {"rocm": {"forward": {"rows": 4, "num_warps": 4, "num_stages": 1}}, "cuda": ...}
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import dispatch

_trial: ContextVar[Mapping[tuple[str, str], Mapping[str, int]] | None] = ContextVar(
    "trial", default=None
)


class Limits(NamedTuple):
    """Of a workgroup. `warp`: threads of a warp (a wave). `threads`, `shared` (bytes): at most.
    `in_registers`: stages of a pipelined loop that Triton keeps there, not in shared memory."""

    device: str
    warp: int
    threads: int
    shared: int
    in_registers: int


LIMITS: Mapping[str, Limits] = {
    "rocm": Limits("MI300X", 64, 1024, 65_536, 1),
    "cuda": Limits("H100", 32, 1024, 232_448, 0),
}


@functools.cache
def table(op: str) -> Mapping[str, Mapping[str, Mapping[str, int]]]:
    """What `<op>/tuned.json` says."""
    return json.loads((Path(__file__).parent / op / "tuned.json").read_text())


def settings(op: str, kernel: str, dtype: Any = None) -> Mapping[str, int]:
    """Settings of a kernel for the platform that is compiled for.

    Of a kernel that has other ones where it computes in float32, they are `kernel_float32`'s.

    An interpreted kernel takes those of `rocm`. `num_warps` counts waves of 64 threads on AMD and
    warps of 32 on NVIDIA.
    """
    if dtype is not None and jnp.dtype(dtype) == jnp.float32:
        kernel = f"{kernel}_float32"
    trial = _trial.get() or {}
    if (op, kernel) in trial:
        return trial[op, kernel]
    known = table(op)
    return known.get(dispatch.platform(), known["rocm"])[kernel]


def compiler_params(chosen: Mapping[str, int], staged: int = 0) -> plgpu.CompilerParams:
    """What Pallas is told. The class of it is what picks Triton as the compiler.

    Args:
      chosen: of `settings`.
      staged: bytes of the tiles that one turn of the kernel's pipelined loop brings into shared
        memory; 0 where that is left to the compiler to find out.

    Raises:
      ValueError: the settings are more than the device that is compiled for has.
    """
    limits = LIMITS.get(dispatch.platform(), LIMITS["rocm"])
    given = ", ".join(f"{name}={value}" for name, value in chosen.items())
    change = f"change them in the op's tuned.json ({given})"
    warps, stages = chosen["num_warps"], chosen["num_stages"]
    if warps < 1 or warps & (warps - 1) or stages < 1:
        raise ValueError(f"num_warps is a power of two and num_stages at least 1: {change}")
    if (threads := warps * limits.warp) > limits.threads:
        raise ValueError(
            f"num_warps={warps} are {threads} threads, and a workgroup of {limits.device} has at "
            f"most {limits.threads}, {limits.threads // limits.warp} warps: {change}"
        )
    needed = (stages - limits.in_registers) * staged if stages > 1 else 0
    if needed > limits.shared:
        raise ValueError(
            f"num_stages={stages} of {staged // 1024} KiB need {needed // 1024} KiB of shared "
            f"memory, and a workgroup of {limits.device} has {limits.shared // 1024} KiB; fewer "
            f"stages or smaller blocks: {change}"
        )
    return plgpu.CompilerParams(num_warps=warps, num_stages=stages)


@contextlib.contextmanager
def trying(op: str, kernel: str, chosen: Mapping[str, int]) -> Iterator[None]:
    """Within it, a kernel takes these settings instead of those in the file.

    jax does not know of it: a jitted function that was traced outside keeps its settings.
    """
    token = _trial.set({**(_trial.get() or {}), (op, kernel): chosen})
    try:
        yield
    finally:
        _trial.reset(token)
