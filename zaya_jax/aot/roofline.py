"""What a compiled kernel's figures mean on its target: occupancy, broken limits, least time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from zaya_jax.aot.report import Kernel, Launch
from zaya_jax.aot.targets import Target

MOST_MOVED = {"cca_mix": 1.15, "residual_norm": 1.15, "router": 1.15}
"""Bytes that a forward pass may move, over the least (`Launch.least_bytes`)."""
SCHEDULERS = 4  # of a core, each with a quarter of its registers, on both makers' GPUs


def groups_per_core(kernel: Kernel, target: Target) -> int:
    """Workgroups of `kernel` that fit onto a core at once; 0 if not even one does."""
    warps = max(-(-kernel.threads // target.warp), 1)
    unit = target.register_unit
    registers = max(-(-kernel.registers // unit), 1) * unit
    by_registers = target.registers_per_core // SCHEDULERS // (registers * target.warp)
    resident = min(by_registers * SCHEDULERS, target.warps_per_core)
    shared = kernel.shared + target.shared_reserved
    by_shared = target.shared_per_core // shared if shared else target.groups_per_core
    return min(resident // warps, by_shared, target.groups_per_core)


def occupancy(kernel: Kernel, target: Target) -> float:
    """Resident warps over those that the scheduler could hold."""
    warps = max(-(-kernel.threads // target.warp), 1)
    return groups_per_core(kernel, target) * warps / target.warps_per_core


def broken_limits(kernel: Kernel, launch: Launch, target: Target) -> Iterator[str]:
    """What is wrong with a kernel, in words that name the limit."""
    if kernel.spills:
        yield f"{kernel.spills} spills"
    if kernel.scratch:
        yield f"{kernel.scratch} bytes of scratch"
    if kernel.shared > target.shared_per_group:
        yield f"{kernel.shared} bytes of shared memory, limit {target.shared_per_group}"
    if kernel.threads > target.threads_per_group:
        yield f"{kernel.threads} threads, limit {target.threads_per_group}"
    if not groups_per_core(kernel, target):
        yield f"does not fit onto a core: {kernel.registers} registers x {kernel.threads} threads"
    if launch.counts is None:
        yield f"not counted: {launch.note}"
        return
    if "tf32" in launch.counts.matrix:
        yield "multiplies float32 as TF32"
    wanted = sorted(set(launch.counts.matrix) & set(target.matrix_dtypes))
    if wanted and not kernel.matrix:
        yield f"no matrix instructions for its products of {', '.join(wanted)}"


def too_many_bytes(op: str, launch: Launch, target: Target) -> Iterator[str]:
    """What is wrong with what a forward pass moves, in an op that is bound by memory.

    Counted behind the L2, which is small on MI300X: weights stay there, activations do not.
    """
    if op not in MOST_MOVED or launch.counts is None or launch.least_bytes < 2 * target.l2_bytes:
        return  # a call this small is in the cache, whatever it does
    ratio = launch.traffic(target.l2_bytes, target.l2s) / launch.least_bytes
    if ratio > MOST_MOVED[op]:
        yield f"moves {ratio:.2f} x the least bytes, limit {MOST_MOVED[op]:g}"


def least_seconds(
    matrix: Mapping[str, float], vector: float, moved: float, target: Target
) -> float:
    """The roofline: arithmetic at the peaks, or `moved` bytes at full bandwidth if that is longer.

    Matrix and vector units work side by side.
    """
    by_matrix = sum(flops / target.peak_of(dtype) for dtype, flops in matrix.items())
    return max(by_matrix, vector / target.peak["vector"], moved / target.bandwidth)


def predicted_seconds(kernel: Kernel, launch: Launch, target: Target) -> float:
    """A guess at a launch's time, to rank settings of one kernel by; not to be reported as a time.

    The longest of matrix work, vector work, memory's traffic and the shared cache's, each slowed
    down by what keeps it from its peak, plus a tenth of the others, for overlap is never perfect:

    * cores without a workgroup compute nothing, and the last round of workgroups leaves some idle;
    * memory and cache need bandwidth x latency bytes under way (Little's law), of which a resident
      thread is taken to keep 64.

    Raises:
      ValueError: the launch was not counted, or the kernel does not fit onto a core.
    """
    resident = groups_per_core(kernel, target)
    if launch.counts is None or not resident:
        raise ValueError(f"{launch.name}: {launch.note or 'does not fit onto a core'}")
    groups = math.prod(launch.grid)
    rounds = groups / (target.cores * resident)
    idle = math.ceil(rounds) / rounds if rounds > 1 else max(target.cores / groups, 1.0)
    threads = min(groups, target.cores * resident) * kernel.threads
    share = min(1.0, threads * 64 / (target.bandwidth * target.latency))
    matrix = sum(flops / target.peak_of(d) for d, flops in launch.counts.matrix.items())
    parts = (
        matrix * idle,
        # A peak counts a fused multiply and add as two; what was counted is mostly not fused.
        2 * launch.counts.vector / target.peak["vector"] * idle,
        launch.traffic(target.cache) / (target.bandwidth * share),
        (sum(launch.counts.reads) + launch.counts.stores) / (target.cache_bandwidth * share),
    )
    return 0.9 * max(parts) + 0.1 * sum(parts)
