"""The GPUs that we compile for without having one: their limits and peaks, as data.

Limits decide whether a kernel can run; peaks give the roofline. XLA takes the same figures as its
description of the device (`Target.description`).

Sources: AMD Instinct MI300X data sheet and CDNA3 ISA guide; NVIDIA H100 SXM5 data sheet and Hopper
tuning guide; XLA's own `target_config/specs` for the fields that only it reads. Latencies, and the
H100's cache bandwidth, are rounded from published microbenchmarks: only the tuner's model of time
reads them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from zaya_jax.errors import UserError, hint

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Target:
    """A GPU. A core is a compute unit (AMD) or streaming multiprocessor (NVIDIA).

    Attributes:
      platform: jax's name, `rocm` or `cuda`.
      architecture: the compiler's name.
      warp: threads that run in step.
      cores: on the device.
      warps_per_core: that can be resident, by the scheduler alone.
      groups_per_core: workgroups (blocks) that can be resident, by the scheduler alone.
      threads_per_group: at most, in a workgroup.
      shared_per_group: bytes of LDS or shared memory, at most, in a workgroup.
      shared_per_core: bytes, for all resident workgroups.
      shared_reserved: bytes that the system takes for each workgroup.
      registers_per_thread: 32-bit registers, at most; on AMD vector and accumulation ones together.
      registers_per_core: 32-bit registers of all lanes.
      register_unit: by how many registers a thread's share grows.
      peak: FLOP/s by the dtype of matrix operands, dense; `vector` is float32 outside of them.
      matrix_dtypes: operands that its matrix instructions take, at full precision.
      cache: bytes that all cores share between them and memory (Infinity Cache, L2).
      bandwidth: bytes/s of device memory.
      cache_bandwidth: bytes/s of the cache that all cores share.
      latency: seconds until a load from memory arrives.
      memory: bytes of device memory.
      l2_bytes, l2s: bytes of an L2, and how many there are; what is read again comes out of it.
      clock_ghz: for XLA.
    """

    name: str
    title: str
    platform: str
    architecture: str
    warp: int
    cores: int
    warps_per_core: int
    groups_per_core: int
    threads_per_group: int
    shared_per_group: int
    shared_per_core: int
    shared_reserved: int
    registers_per_thread: int
    registers_per_core: int
    register_unit: int
    peak: Mapping[str, float]
    matrix_dtypes: tuple[str, ...]
    cache: int
    bandwidth: float
    cache_bandwidth: float
    latency: float
    memory: int
    clock_ghz: float
    l2_bytes: int
    l2s: int

    def peak_of(self, dtype: str) -> float:
        """FLOP/s of matrix products of `dtype`; the vector units' where it has no matrix unit."""
        return self.peak.get(dtype, self.peak["vector"])

    def description(self) -> str:
        """The device as XLA's `GpuTargetConfigProto`, in text form."""
        info = {
            "threads_per_block_limit": self.threads_per_group,
            "threads_per_warp": self.warp,
            # What a kernel gets without asking; what it gets on asking is `..._optin`.
            "shared_memory_per_block": min(self.shared_per_group, 65_536)
            if self.platform == "rocm"
            else 49_152,
            "shared_memory_per_block_optin": self.shared_per_group,
            "shared_memory_per_core": self.shared_per_core,
            "threads_per_core_limit": 2048,
            "core_count": self.cores,
            "fpus_per_core": 128,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 65_535,
            "block_dim_limit_z": 65_535,
            "memory_bandwidth": int(self.bandwidth),
            "l2_cache_size": self.l2_bytes,
            "clock_rate_ghz": self.clock_ghz,
            "device_memory_size": self.memory,
            "registers_per_core_limit": self.registers_per_core,
            "registers_per_block_limit": min(self.registers_per_core, 131_072),
        }
        lines = [f"{name}: {value}" for name, value in info.items()]
        if self.platform == "rocm":
            name = f"{self.architecture}:sramecc+:xnack-"
            lines.append(f'rocm_compute_capability {{ gcn_arch_name: "{name}" }}')
            versions = "dnn_version_info { }"
        else:
            lines.append(
                "cuda_compute_capability "
                "{ major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }"
            )
            lines.append("device_interconnect_info { active_links: 18 }")
            versions = "dnn_version_info { major: 9 minor: 10 } runtime_version { major: 13 }"
        return (
            f"gpu_device_info {{ {' '.join(lines)} }} {versions} "
            f'platform_name: "{self.platform.upper()}" device_description_str: "{self.title}"'
        )


MI300X = Target(
    name="mi300x",
    title="AMD Instinct MI300X",
    platform="rocm",
    architecture="gfx942",
    warp=64,
    cores=304,
    warps_per_core=32,  # eight on each of four SIMDs
    groups_per_core=32,
    threads_per_group=1024,
    shared_per_group=65_536,
    shared_per_core=65_536,
    shared_reserved=0,
    registers_per_thread=512,
    registers_per_core=131_072,  # 4 SIMDs x 512 registers x 64 lanes
    register_unit=8,
    peak={
        "float8": 2614.9e12,
        "int8": 2614.9e12,
        "bfloat16": 1307.4e12,
        "float16": 1307.4e12,
        "float32": 163.4e12,
        "vector": 163.4e12,
    },
    matrix_dtypes=("float8", "int8", "bfloat16", "float16", "float32", "float64"),
    cache=256 * 2**20,
    bandwidth=5.3e12,
    cache_bandwidth=17.2e12,
    latency=0.8e-6,
    memory=192 * GIB,
    clock_ghz=2.1,
    l2_bytes=4 * 2**20,
    l2s=8,  # one on each compute die
)

H100 = Target(
    name="h100",
    title="NVIDIA H100 80GB HBM3",
    platform="cuda",
    architecture="sm_90a",
    warp=32,
    cores=132,
    warps_per_core=64,
    groups_per_core=32,
    threads_per_group=1024,
    shared_per_group=232_448,
    shared_per_core=233_472,
    shared_reserved=1024,
    registers_per_thread=255,
    registers_per_core=65_536,
    register_unit=8,
    peak={
        "float8": 1978.9e12,
        "int8": 1978.9e12,
        "bfloat16": 989.4e12,
        "float16": 989.4e12,
        # Its tensor cores take float32 as TF32 only, which we never use: these are plain FMAs.
        "float32": 66.9e12,
        "vector": 66.9e12,
    },
    matrix_dtypes=("float8", "int8", "bfloat16", "float16", "float64"),
    cache=50 * 2**20,
    bandwidth=3.35e12,
    cache_bandwidth=5.5e12,
    latency=0.65e-6,
    memory=84_942_979_072,
    clock_ghz=1.98,
    l2_bytes=50 * 2**20,
    l2s=1,
)

TARGETS: Mapping[str, Target] = {target.name: target for target in (MI300X, H100)}


def target_of(name: str) -> Target:
    """The target called `name`.

    Raises:
      UserError: there is none.
    """
    if name not in TARGETS:
        raise UserError(f"no target {name!r}{hint(name, TARGETS)}")
    return TARGETS[name]
