"""That `make test-gpu` runs, as compiled, what the kernels' own tests run interpreted elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
# jax of a machine with an NVIDIA GPU, as far as collection asks; nothing is run.
COLLECT = """
import sys, jax, pytest
if sys.argv[1] == "gpu":
    jax.default_backend = lambda: "gpu"
arguments = ["--collect-only", "-q", "-p", "no:cacheprovider", "tests/pallas_kernels", "-m"]
sys.exit(pytest.main([*arguments, *sys.argv[2:]]))
"""
COMPILED = [
    "test_attention.py::test_kernels_agree_with_the_reference[33-40-1-4-128-bfloat16",
    "test_attention.py::test_shards_of_the_queries_give_what_the_whole_row_gives[triton]",
    "test_cca_mix.py::test_a_token_goes_into_the_cache[float32-19-heads0-kernels0-triton]",
    "test_cca_mix.py::test_pages_are_read_and_written_where_they_lie[triton]",
    "test_cross_entropy.py::test_triton_agrees_with_the_reference[bfloat16]",
    "test_decode_attention.py::test_kernels_agree_with_the_reference[2-2-96-None-bfloat16-32-int8]",
    "test_decode_attention.py::test_one_split_or_as_many_as_there_are_blocks_for[1000]",
    "test_grouped_matmul.py::test_agrees_with_the_reference_on_drawn_routings[triton-bfloat16]",
    "test_grouped_matmul.py::test_decoding_reads_the_chosen_experts_only",
    "test_newton_schulz.py::test_agrees_with_the_definition[triton-float32-bfloat16",
    "test_projections.py::test_agrees_with_the_definition",
    "test_quantized.py::test_agrees_with_the_definition[301-1-bfloat16-fp4-triton]",
    "test_residual_norm.py::test_agrees_with_the_definition[bfloat16-triton]",
    "test_router.py::test_kernel_agrees_with_the_definition[bfloat16",
]


def collected(machine: str, expression: str) -> str:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTEST_ADDOPTS": ""}
    found = subprocess.run(
        [sys.executable, "-c", COLLECT, machine, expression],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert found.returncode in (0, 5), found.stdout + found.stderr  # 5: none
    return found.stdout


def test_a_gpu_runs_the_tests_of_kernels():
    found = collected("gpu", "gpu")
    assert not [name for name in COMPILED if name not in found]
    assert "xla" not in found and "lowers_for_a_gpu" not in found and "refuses" not in found


@pytest.mark.slow
def test_a_cpu_runs_them_interpreted():
    found = collected("cpu", "not gpu")
    assert not [name for name in COMPILED if name not in found]
    assert "no tests collected" in collected("cpu", "gpu")
