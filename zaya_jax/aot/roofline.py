"""What a compiled kernel's figures mean on its target: occupancy, broken limits, least time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from zaya_jax.aot.report import Kernel, Launch
from zaya_jax.aot.targets import Target

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


def least_seconds(
    matrix: Mapping[str, float], vector: float, moved: float, target: Target
) -> float:
    """The roofline: arithmetic at the peaks, or `moved` bytes at full bandwidth if that is longer.

    Matrix and vector units work side by side.
    """
    by_matrix = sum(flops / target.peak_of(dtype) for dtype, flops in matrix.items())
    return max(by_matrix, vector / target.peak["vector"], moved / target.bandwidth)
