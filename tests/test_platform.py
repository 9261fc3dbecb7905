"""The ROCm preset: when it applies, and that it never overrides the user."""

import os
import subprocess
import sys

import pytest

from zaya_jax import platform


def no(name):
    return None


NOTHING = {"exists": lambda path: False, "installed": no}
AMD = {
    "exists": lambda path: path == "/dev/kfd",
    "installed": lambda name: "0.10.2" if name in platform.ROCM_PLUGINS else None,
}


@pytest.mark.parametrize(
    ("environment", "machine", "expected"),
    [
        ({}, NOTHING, False),
        ({}, AMD, True),
        ({"JAX_PLATFORMS": "cpu"}, AMD, False),
        ({"JAX_PLATFORMS": "cuda,cpu"}, AMD, False),
        ({"JAX_PLATFORMS": "rocm,cpu"}, NOTHING, True),
        ({"JAX_PLATFORMS": "gpu"}, AMD, True),
        ({"JAX_PLATFORMS": "gpu"}, NOTHING, False),
        # The driver without the plugin, and the plugin without the driver: not a ROCm run.
        ({}, {**AMD, "installed": lambda name: None}, False),
        ({}, {**AMD, "exists": lambda path: False}, False),
        # A container may hide /dev/kfd's name but say where ROCm is.
        ({"ROCM_PATH": "/opt/rocm-7"}, {**AMD, "exists": lambda p: p == "/opt/rocm-7"}, True),
    ],
)
def test_rocm_is_detected_without_importing_jax(environment, machine, expected):
    assert platform.is_rocm(environment, **machine) is expected


NVIDIA = {
    "exists": lambda path: path == "/dev/nvidiactl",
    "installed": lambda name: "0.10.2" if name in platform.CUDA_PLUGINS[:2] else None,
}


@pytest.mark.parametrize(
    ("environment", "machine", "expected"),
    [
        ({}, NOTHING, False),
        ({}, NVIDIA, True),
        ({}, AMD, False),
        ({"JAX_PLATFORMS": "cpu"}, NVIDIA, False),
        ({"JAX_PLATFORMS": "gpu"}, NVIDIA, True),
        ({"JAX_PLATFORMS": "cuda,cpu"}, NOTHING, True),
        ({}, {**NVIDIA, "exists": lambda path: False}, False),
    ],
)
def test_cuda_is_detected_without_importing_jax(environment, machine, expected):
    assert platform.is_cuda(environment, **machine) is expected


def test_float32_is_float32_on_either_gpu_unless_the_user_says_otherwise():
    for preset in (platform.cuda_preset, platform.rocm_preset):
        assert preset({})["JAX_DEFAULT_MATMUL_PRECISION"] == "highest"
        assert "JAX_DEFAULT_MATMUL_PRECISION" not in preset({"JAX_DEFAULT_MATMUL_PRECISION": ""})


def test_preset_switches_command_buffers_off():
    assert "--xla_gpu_enable_command_buffer=" in platform.rocm_preset({})["XLA_FLAGS"].split()


def test_preset_keeps_what_the_user_set():
    own = "--xla_gpu_enable_command_buffer=FUSION --xla_dump_to=dump"
    environment = {"XLA_FLAGS": own, "GPU_MAX_HW_QUEUES": "4", "HIP_FORCE_DEV_KERNARG": ""}
    changes = platform.rocm_preset(environment)
    assert "GPU_MAX_HW_QUEUES" not in changes
    assert "HIP_FORCE_DEV_KERNARG" not in changes  # set to nothing is set
    flags = changes["XLA_FLAGS"].split()
    assert [flag for flag in flags if "command_buffer" in flag] == own.split()[:1]
    assert flags[-2:] == own.split()
    assert "--xla_gpu_autotune_level=0" in flags


def test_preset_is_idempotent():
    once = platform.rocm_preset({})
    assert platform.rocm_preset(once) == {}


def test_installed_xla_knows_every_flag_of_the_preset():
    # XLA aborts the process on a flag it does not know.
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **platform.rocm_preset({})}
    code = "import jax; jax.devices()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_a_gpu_that_jax_does_not_use_is_a_problem():
    def told(environment, backend="cpu", machine=AMD):
        return platform.silent_gpu(environment, backend, **machine)

    assert "/dev/kfd is there and jax-rocm7-plugin is installed" in told({})
    assert "no jax-rocm7-plugin is installed" in told({}, machine={**AMD, "installed": no})
    nvidia = {"exists": lambda path: path == "/dev/nvidia0", "installed": no}
    assert "requirements-cuda.txt" in told({}, machine=nvidia)
    assert told({"JAX_PLATFORMS": "cpu"}) is None
    assert told({}, "gpu") is None
    assert told({}, machine=NOTHING) is None


def test_compiled_programs_are_kept_unless_the_user_chose_a_folder(tmp_path):
    folder = tmp_path / "a" / "jax"
    changes = platform.cache_preset({}, folder)
    assert changes["JAX_COMPILATION_CACHE_DIR"] == str(folder) and folder.is_dir()
    assert platform.cache_preset({"JAX_COMPILATION_CACHE_DIR": ""}, folder) == {}
    (tmp_path / "file").write_text("")
    assert platform.cache_preset({}, tmp_path / "file" / "jax") == {}
    own = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "5"}
    assert not own.keys() & platform.cache_preset(own, folder).keys()
