"""Each run gets its share of the machine."""

import os
import subprocess
import sys

import pytest

from zaya_jax.errors import UserError
from zaya_jax.sweep import machine

CPU = {"backend": "cpu", "devices": ["cpu"], "cores": 8}
GPU = {"backend": "gpu", "devices": ["MI300X"] * 4, "cores": 64}


def test_cores_are_shared_out():
    assert machine.places(CPU, None, 1) == [machine.limited(1)] * 8
    assert machine.places(CPU, None, 3) == [machine.limited(3)] * 2
    assert machine.places(CPU, None, 16) == [machine.limited(16)]
    assert len(machine.places(CPU, 3, 1)) == 3


def test_every_worker_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    places = machine.places(GPU, None, 1)
    assert places == [{"CUDA_VISIBLE_DEVICES": str(i)} for i in range(4)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert machine.places(GPU, 2, 1) == [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in "45"]
    with pytest.raises(UserError, match="--workers=5: a run has a GPU of its own, and there are 4"):
        machine.places(GPU, 5, 1)
    monkeypatch.setenv("JAX_PLATFORMS", "rocm")
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    assert machine.places(GPU, 1, 1) == [{"HIP_VISIBLE_DEVICES": "0"}]


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_limited_process_has_so_many_threads():
    """XLA's CPU client keeps to the number: its pools have as many threads more."""
    program = (
        "import jax, os; jax.block_until_ready(jax.jit(lambda: jax.numpy.ones(3) @ "
        "jax.numpy.ones((3, 4)))()); print(len(os.listdir('/proc/self/task')))"
    )

    def threads(number):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **machine.limited(number)},
            capture_output=True,
            text=True,
            check=True,
        )
        return int(done.stdout)

    assert threads(40) - threads(1) >= 39


def test_the_record_of_a_start_says_what_it_ran_on():
    seen = machine.look()
    assert {"command", "commit", "versions", "backend", "cores"} <= set(seen)
    assert machine.gpus(CPU) == 0 and machine.gpus(GPU) == 4
