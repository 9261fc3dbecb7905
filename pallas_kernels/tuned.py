"""Settings of kernels: block sizes, warps and stages, by platform, in a file beside each kernel.

`<op>/tuned.json` maps a platform (`rocm`, `cuda`) to kernels and each kernel to its settings:

    {"rocm": {"forward": {"rows": 4, "num_warps": 4, "num_stages": 1}}, "cuda": ...}
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

from pallas_kernels import dispatch

FOLDER = Path(__file__).parent

_trial: ContextVar[Mapping[tuple[str, str], Mapping[str, int]] | None] = ContextVar(
    "trial", default=None
)


class Limits(NamedTuple):
    """Of a workgroup. `warp`: threads of a warp (a wave). `threads`, `shared` (bytes): at most.
    `in_registers`: stages of a pipelined loop that Triton keeps there, not in shared memory.
    `chained`: the most stages that are certainly in shared memory where a product of the loop
    waits for another one."""

    device: str
    warp: int
    threads: int
    shared: int
    in_registers: int
    chained: int


LIMITS: Mapping[str, Limits] = {
    "rocm": Limits("MI300X", 64, 1024, 65_536, 1, 1),
    "cuda": Limits("H100", 32, 1024, 232_448, 0, 8),
}


@functools.cache
def table(op: str) -> Mapping[str, Mapping[str, Mapping[str, int]]]:
    """What `<op>/tuned.json` says."""
    return json.loads((FOLDER / op / "tuned.json").read_text())


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


def least_shared(
    stages: int,
    tiles: Sequence[int],
    own: int = 0,
    *,
    early: bool = False,
    chained: bool = False,
) -> int:
    """Bytes of shared memory that a kernel needs at least; see `compiler_params`.

    A tile passes through shared memory on its way into the operands of matrix instructions, one
    tile at a time if need be. A pipelined loop has those of its turn there side by side, as many
    times as it has stages but for those in registers.
    """
    limits = LIMITS.get(dispatch.platform(), LIMITS["rocm"])
    held = stages - max(limits.in_registers, early) if stages > 1 else 0
    if chained:
        held = min(held, limits.chained)
    return max(own, held * sum(tiles), *tiles, 0)


def compiler_params(
    chosen: Mapping[str, int],
    tiles: Sequence[int] = (),
    own: int = 0,
    *,
    early: bool = False,
    chained: bool = False,
) -> plgpu.CompilerParams:
    """What Pallas is told. The class of it is what picks Triton as the compiler.

    What is refused here is refused in words; what shared memory a kernel needs beyond its
    operands' tiles is left to the compiler to find out.

    Args:
      chosen: of `settings`.
      tiles: bytes of each tile that one turn of the kernel's loop loads and multiplies.
      own: bytes of the largest tile that it multiplies and that comes from outside of the loop.
      early: whether a turn's tiles leave shared memory a stage early: for registers, where it is no
        WGMMA that multiplies them (float32, or less than 64 rows), or because they come later,
        behind the load of an index in the loop.
      chained: whether one product of the loop is an operand of the next.

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
    needed = least_shared(stages, tiles, own, early=early, chained=chained)
    if needed > limits.shared:
        raise ValueError(
            f"these blocks in num_stages={stages} need at least {needed / 1024:g} KiB of shared "
            f"memory, and a workgroup of {limits.device} has {limits.shared / 1024:g} KiB; fewer "
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
