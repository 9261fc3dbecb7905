"""What the environment should hold before jax is imported: presets of GPUs, and a cache.

Pure functions of an environment and of what is installed, none of which imports jax. The values
follow what AMD's documentation and training scripts set for JAX on Instinct GPUs; BUILD.md gives
each one's reason. Nothing that the user has set is ever changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path

# XLA aborts on a flag it does not know: each of these was parsed by jaxlib 0.10.2.
ROCM_XLA_FLAGS: Mapping[str, str] = {
    # Empty is off: graphs of while loops have crashed the ROCm runtime (openxla 40405, 46952).
    "xla_gpu_enable_command_buffer": "",
    "xla_gpu_enable_latency_hiding_scheduler": "true",
    "xla_gpu_enable_pipelined_all_gather": "true",
    "xla_gpu_enable_pipelined_all_reduce": "true",
    "xla_gpu_enable_pipelined_reduce_scatter": "true",
    "xla_gpu_enable_cublaslt": "true",
    "xla_gpu_enable_triton_gemm": "false",
    "xla_gpu_autotune_level": "0",
    "xla_gpu_unsupported_use_ragged_all_to_all_one_shot_kernel": "false",
}

GPU_ENVIRONMENT: Mapping[str, str] = {
    # Nearly all of it: `launch.py plan` counts with as much.
    "XLA_PYTHON_CLIENT_MEM_FRACTION": ".93",
    # float32 products are meant to be float32, not TF32; bfloat16 ones are not touched.
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
}
ROCM_ENVIRONMENT: Mapping[str, str] = {
    **GPU_ENVIRONMENT,
    "HIP_FORCE_DEV_KERNARG": "1",
    "HSA_FORCE_FINE_GRAIN_PCIE": "1",
    "HSA_NO_SCRATCH_RECLAIM": "1",
    "HSA_ENABLE_IPC_MODE_LEGACY": "1",
    "GPU_MAX_HW_QUEUES": "2",
    "CUDA_DEVICE_MAX_CONNECTIONS": "1",
}

ROCM_PLUGINS = ("jax-rocm7-plugin", "jax-rocm7-pjrt")
CUDA_PLUGINS = ("jax-cuda13-plugin", "jax-cuda13-pjrt", "jax-cuda12-plugin", "jax-cuda12-pjrt")


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def is_rocm(
    environment: Mapping[str, str],
    installed: Callable[[str], str | None] = version_of,
    exists: Callable[[str], bool] = os.path.exists,
) -> bool:
    """Whether jax will run on an AMD GPU here.

    The user's JAX_PLATFORMS decides where it is set. Otherwise both the plugin and a sign of the
    hardware's driver are needed: the plugin alone is also installed to compile for AMD elsewhere.
    """
    asked = environment.get("JAX_PLATFORMS", "")
    if asked and asked not in ("gpu", "rocm"):
        return "rocm" in asked.split(",")
    driver = exists("/dev/kfd") or exists(environment.get("ROCM_PATH") or "/opt/rocm")
    return asked == "rocm" or (driver and installed(ROCM_PLUGINS[0]) is not None)


def is_cuda(
    environment: Mapping[str, str],
    installed: Callable[[str], str | None] = version_of,
    exists: Callable[[str], bool] = os.path.exists,
) -> bool:
    """Whether jax will run on an NVIDIA GPU here; see `is_rocm`."""
    asked = environment.get("JAX_PLATFORMS", "")
    if asked and asked != "gpu":
        return "cuda" in asked.split(",")
    plugin = any(installed(name) is not None for name in CUDA_PLUGINS)
    return plugin and exists("/dev/nvidiactl")


def cuda_preset(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to set for a CUDA run, but for those that are set."""
    return {name: value for name, value in GPU_ENVIRONMENT.items() if name not in environment}


def rocm_preset(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables to set for a ROCm run, given those that are set.

    Returns only what changes: XLA_FLAGS is merged flag by flag, the user's own flags last and
    as they are; any other variable is left out where the user set it, to an empty string too.
    """
    changes = {name: value for name, value in ROCM_ENVIRONMENT.items() if name not in environment}
    own = environment.get("XLA_FLAGS", "")
    named = {flag.lstrip("-").split("=", 1)[0] for flag in own.split()}
    ours = [f"--{name}={value}" for name, value in ROCM_XLA_FLAGS.items() if name not in named]
    if ours:
        changes["XLA_FLAGS"] = " ".join([*ours, *([own] if own else [])])
    return changes


def cache_preset(environment: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The variables by which jax keeps compiled programs in `folder`, given those that are set.

    None where the user chose a folder, or this one cannot be written.
    """
    if "JAX_COMPILATION_CACHE_DIR" in environment:
        return {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return {}
    if not os.access(folder, os.W_OK):
        return {}
    changes = {
        "JAX_COMPILATION_CACHE_DIR": str(folder),
        # jax keeps what took a second; `generate` has many smaller ones.
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    return {name: value for name, value in changes.items() if name not in environment}


def preset(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The changes for this machine: those of its GPU; nothing where there is none."""
    environment = os.environ if environment is None else environment
    if is_rocm(environment):
        return rocm_preset(environment)
    return cuda_preset(environment) if is_cuda(environment) else {}


def silent_gpu(
    environment: Mapping[str, str],
    backend: str,
    installed: Callable[[str], str | None] = version_of,
    exists: Callable[[str], bool] = os.path.exists,
) -> str | None:
    """What is wrong if jax runs on the CPU although a GPU is there and nobody asked for the CPU.

    Args:
      environment: that jax was imported in.
      backend: which jax chose.
    """
    if backend != "cpu" or environment.get("JAX_PLATFORMS"):
        return None
    for vendor, plugins, device in (
        ("rocm", ROCM_PLUGINS, "/dev/kfd"),
        ("cuda", CUDA_PLUGINS, "/dev/nvidia0"),
    ):
        plugin = next((name for name in plugins if installed(name)), None)
        if not exists(device) and plugin is None:
            continue
        there = f"{device} is there" if exists(device) else f"there is no {device}"
        have = f"{plugin} is installed" if plugin else f"no {plugins[0]} is installed"
        return (
            f"jax runs on the CPU, but {there} and {have}; see BUILD.md, requirements-{vendor}.txt"
            ", or set JAX_PLATFORMS=cpu if the CPU is meant"
        )
    return None
