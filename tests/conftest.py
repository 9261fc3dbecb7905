"""What all tests share: the CPU by default, a compilation cache, few and unhurried examples."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

# jax reads these when it is imported, which happens after this file. `make test-gpu` sets
# JAX_PLATFORMS to nothing, which lets jax find the GPU.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
if os.environ["JAX_PLATFORMS"] == "cpu":  # kernels on a GPU are to be compiled as they are used
    # Most of the tests' time is LLVM's, optimising programs that then run for milliseconds.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# The oracles' models are small: threads of torch would only wait for those of the other worker.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis  # noqa: E402
import pytest  # noqa: E402

hypothesis.settings.register_profile(
    "tests",
    deadline=None,  # the first example compiles
    max_examples=10,
    derandomize=bool(os.environ.get("CI")),  # a red CI must be the change's fault
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")


ORACLES = ("torch", "transformers", "trl", "peft")
skip_without = pytest.importorskip


def importorskip(name: str, *args, **kwargs):
    """`pytest.importorskip`, but an oracle that cannot be imported fails where one is required.

    `make test` requires them: parity must not be proved by tests that were skipped.
    """
    if os.environ.get("ZAYA_REQUIRE_ORACLES") and name.split(".")[0] in ORACLES:
        return importlib.import_module(name)
    return skip_without(name, *args, **kwargs)


pytest.importorskip = importorskip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips `gpu` tests where jax sees no GPU."""
    wanted = [item for item in items if "gpu" in item.keywords]
    if not wanted:
        return
    import jax

    if jax.default_backend() != "gpu":
        skip = pytest.mark.skip(reason=f"needs a GPU; jax runs on {jax.default_backend()}")
        for item in wanted:
            item.add_marker(skip)
