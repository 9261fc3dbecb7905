"""The compilers' wheels: which interpreter has them, and what is missing there.

They live best in an environment of their own: with jax's GPU plugins installed but no GPU, jax
complains at every start. The worker process runs in whichever interpreter is chosen here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from zaya_jax.aot.targets import Target

ROOT = Path(__file__).parents[2]
# Stand-in libraries are kept here.
CACHE = ROOT / ".cache" / "aot"

# Pinned in requirements-aot.txt; the plugins must have jax's own version.
PLUGINS: Mapping[str, tuple[str, ...]] = {
    "rocm": ("jax-rocm7-plugin", "jax-rocm7-pjrt"),
    "cuda": ("jax-cuda13-plugin", "jax-cuda13-pjrt"),
}
TOOLS: Mapping[str, tuple[str, ...]] = {
    "rocm": (),
    "cuda": ("nvidia-cuda-nvcc", "nvidia-nvvm"),
}
HOW = (
    "python3 -m venv .venv-aot && .venv-aot/bin/pip install -r requirements-aot.txt "
    "(wheels for Linux on x86-64 only)"
)


def interpreter(environment: Mapping[str, str] = os.environ, root: Path = ROOT) -> str:
    """The Python that compiles: ZAYA_AOT_PYTHON, or that of .venv-aot, or this one."""
    own = root / ".venv-aot" / "bin" / "python"
    return environment.get("ZAYA_AOT_PYTHON") or (str(own) if own.exists() else sys.executable)


def missing(target: Target) -> list[str]:
    """The wheels that compiling for `target` needs and this interpreter lacks."""
    wanted = (*PLUGINS[target.platform], *TOOLS[target.platform])
    wrong = [name for name in wanted if version(name) is None]
    jax_version = version("jax")
    for name in PLUGINS[target.platform]:
        found = version(name)
        if found is not None and found != jax_version:
            wrong.append(f"{name}=={jax_version} (not {found})")
    return wrong


def version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def versions(target: Target) -> dict[str, str]:
    """Of what compiles for `target` in this interpreter."""
    names = ("jax", "jaxlib", *PLUGINS[target.platform], *TOOLS[target.platform], "triton")
    return {name: found for name in names if (found := version(name)) is not None}


def unavailable(target: Target, python: str | None = None) -> str | None:
    """Why nothing can be compiled for `target` with `python`, and what to do; None if it can."""
    python = python or interpreter()
    command = [python, "-m", "zaya_jax.aot.worker", target.name, "--check"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=worker_environment())
    except OSError as error:
        return f"{python} does not run: {error.strerror}"
    if done.returncode:
        return f"{python} cannot run the compiler: {done.stderr.strip().splitlines()[-1:]}"
    lacking = done.stdout.strip()
    return f"compiling for {target.name} needs {lacking}, missing here; {HOW}" if lacking else None


def worker_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The worker's: this code importable, and no device but the CPU."""
    path = environment.get("PYTHONPATH")
    return {
        **environment,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *([path] if path else [])]),
        "JAX_PLATFORMS": "cpu",
    }
