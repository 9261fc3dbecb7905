"""What a sweep runs on: how many runs at a time, and what each may use."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from zaya_jax import platform
from zaya_jax.errors import UserError
from zaya_jax.train import workdir

_LOOK = "import json; from zaya_jax.train import workdir; print(json.dumps(workdir.environment()))"


def look() -> dict[str, Any]:
    """The record of this start, as `train.workdir.environment`.

    Where there may be GPUs another process looks: one that has looked holds memory of theirs, which
    is for the runs. This one keeps to the CPU then.
    """
    plugins = any(map(platform.version_of, (*platform.ROCM_PLUGINS, *platform.CUDA_PLUGINS)))
    if not plugins or os.environ.get("JAX_PLATFORMS") == "cpu":
        return workdir.environment()
    importlib.import_module("jax").config.update("jax_platforms", "cpu")
    found = subprocess.run(
        [sys.executable, "-c", _LOOK],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    if found.returncode:
        raise UserError(f"jax does not start here:\n{found.stderr.strip()[-2000:]}")
    seen = json.loads(found.stdout.splitlines()[-1])
    return {**seen, "command": workdir.environment()["command"]}


def gpus(seen: Mapping[str, Any]) -> int:
    """How many of them a record of this machine has."""
    return len(seen["devices"]) if seen["backend"] == "gpu" else 0


def places(seen: Mapping[str, Any], workers: int | None, threads: int) -> list[dict[str, str]]:
    """Variables for the runs of each worker: a GPU of its own, or so many threads of the CPU.

    Args:
      seen: the record of this machine.
      workers: how many; None takes as many as there is room for.
      threads: of a run, on the CPU. Sums are split among threads, so another number of them gives
        other roundings: it must not depend on how many runs there are at a time.

    Raises:
      UserError: more workers than GPUs.
    """
    count = gpus(seen)
    if not count:
        room = max(1, (seen["cores"] or 1) // threads)
        return [limited(threads) for _ in range(workers or room)]
    if workers is not None and workers > count:
        raise UserError(f"--workers={workers}: a run has a GPU of its own, and there are {count}")
    rocm = platform.is_rocm(os.environ)
    name = "HIP_VISIBLE_DEVICES" if rocm else "CUDA_VISIBLE_DEVICES"
    named = os.environ.get(name)
    ids = named.split(",") if named else [str(i) for i in range(count)]
    return [{name: ids[i]} for i in range(workers or count)]


def limited(threads: int) -> dict[str, str]:
    """Variables by which XLA's CPU client, and numpy's libraries, keep to so many threads."""
    return {name: str(threads) for name in ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
