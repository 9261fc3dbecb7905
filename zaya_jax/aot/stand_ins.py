"""Stand-ins for the libraries of ROCm, so that jax's ROCm plugin loads where there is no ROCm.

The plugin holds a whole compiler (LLVM, lld, the device's bitcode), but will not load without
twelve libraries that are in no wheel. To compile, it calls none of them. Each stand-in is a shared
library in which every function that the plugin wants answers "no device": they can run nothing.

They are made on demand with the C compiler into a cache folder, preloaded by the worker process
alone, and never where a real ROCm is installed.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

NO_DEVICE, FAILURE = 100, 1  # hipErrorNoDevice; any error of the other libraries

# By library, the prefixes of the functions it has. The longest prefix that fits decides.
PREFIXES: Mapping[str, tuple[str, ...]] = {
    "libMIOpen": ("miopen",),
    "libamdhip64": ("hip", "__hip", "amd_", "hsa_"),
    "libhipblas.": ("hipblas",),
    "libhipblaslt": ("hipblaslt", "hipblasLt"),
    "libhipfft": ("hipfft",),
    "libhipsolver": ("hipsolver",),
    "libhipsparse": ("hipsparse",),
    "librccl": ("nccl", "msccl", "pncc"),
    "librocblas": ("rocblas",),
    "librocm_smi64": ("rsmi",),
    "librocprofiler-sdk": ("rocprofiler", "roctx"),
    "librocsolver": ("rocsolver",),
}


def real_rocm(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether ROCm is installed here: the HIP library, where the loader or the plugin looks."""
    root = Path(environment.get("ROCM_PATH") or "/opt/rocm")
    return bool(ctypes.util.find_library("amdhip64")) or any(root.glob("lib*/libamdhip64.so*"))


def preload(cache: Path) -> None:
    """Makes the stand-ins, unless they are there, and loads them into this process.

    Raises:
      RuntimeError: the plugin's wheels, or the tools to read or make libraries, are not here.
    """
    for library in sorted(make(plugin_libraries(), cache).glob("lib*.so*")):
        # Global, so that what the plugin asks for by the same name resolves to it.
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def plugin_libraries() -> list[Path]:
    """The shared libraries of jax's ROCm plugin."""
    found: list[Path] = []
    for package in ("jax_plugins.xla_rocm7", "jax_rocm7_plugin"):
        spec = importlib.util.find_spec(package)
        for root in (spec and spec.submodule_search_locations) or ():
            found += sorted(Path(root).glob("*.so"))
    return found


def make(plugins: list[Path], cache: Path) -> Path:
    """The folder of the stand-ins that `plugins` need, made in `cache` if it is not there.

    Raises:
      RuntimeError: a tool is missing, or fails.
    """
    state = [f"{p}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in plugins]
    state.append(Path(__file__).read_text())
    digest = hashlib.sha256("\n".join(state).encode()).hexdigest()[:16]
    done = cache / f"rocm-stand-ins-{digest}"
    if done.is_dir():
        return done
    for tool in ("gcc", "nm", "readelf"):
        if shutil.which(tool) is None:
            raise RuntimeError(f"stand-ins for ROCm are made with {tool}, which is not installed")
    cache.mkdir(parents=True, exist_ok=True)
    names, functions = _wanted(plugins)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        folder = Path(scratch) / "made"
        folder.mkdir()
        for name in names:
            own = {f: v for f, v in functions.items() if name.startswith(_library_of(f) or "-")}
            _make_one(folder / name, own, Path(scratch))
        try:
            folder.rename(done)
        except OSError:  # another process was first
            if not done.is_dir():
                raise
    return done


def _wanted(plugins: list[Path]) -> tuple[list[str], dict[str, str]]:
    """The ROCm libraries that `plugins` need; undefined functions, with their version or ""."""
    names: set[str] = set()
    functions: dict[str, str] = {}
    for plugin in plugins:
        needed = re.findall(r"\(NEEDED\).*\[(.+?)\]", _output("readelf", "-dW", plugin))
        names |= {name for name in needed if name.startswith(tuple(PREFIXES))}
        for line in _output("nm", "-D", "--undefined-only", plugin).splitlines():
            *_, kind, symbol = line.split()
            name, _, version = symbol.partition("@")
            if kind == "U" and _library_of(name):
                functions[name] = version.lstrip("@")
    return sorted(names), functions


def _library_of(function: str) -> str | None:
    fits = [
        (len(prefix), library)
        for library, prefixes in PREFIXES.items()
        for prefix in prefixes
        if function.startswith(prefix)
    ]
    return max(fits)[1] if fits else None


def _make_one(library: Path, functions: Mapping[str, str], scratch: Path) -> None:
    source = scratch / "source.c"
    source.write_text("\n".join(_definition(name) for name in sorted(functions)) + "\n")
    command: list[str | Path] = [
        "gcc",
        "-w",
        "-shared",
        "-fPIC",
        "-nostdlib",
        "-o",
        library,
        source,
    ]
    command.append(f"-Wl,-soname,{library.name}")
    versions = sorted({version for version in functions.values() if version})
    if versions:
        script = scratch / "versions.map"
        lines = []
        for version in versions:
            names = "; ".join(name for name, own in functions.items() if own == version)
            lines.append(f"{version} {{ global: {names}; }};\n")
        script.write_text("".join(lines))
        command.append(f"-Wl,--version-script={script}")
    _output(*command)


def _definition(function: str) -> str:
    """A C function that answers that there is no device, in the way of its library."""
    if re.search(r"GetErrorString|GetErrorName|ncclGetLastError|_string$", function):
        return f'const char* {function}(void) {{ return "no ROCm is installed"; }}'
    if function.startswith("__hip"):  # registration of fat binaries, at load time
        return f"long {function}(void) {{ return 0; }}"
    own_hip = _library_of(function) == "libamdhip64"
    return f"long {function}(void) {{ return {NO_DEVICE if own_hip else FAILURE}; }}"


def _output(*command: str | Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr.strip() or done.returncode}")
    return done.stdout
