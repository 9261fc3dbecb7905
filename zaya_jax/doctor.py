"""Says whether this machine can run ZAYA: versions, platform, and every op against its reference.

Each op of `pallas_kernels` is called on a small drawn input, in float32 and bfloat16, on the
attached device; the largest difference from its `reference.py` is compared with a tolerance. The
exit status is 1 if the versions do not fit together, an op is missing, or a check fails.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform as host
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from zaya_jax import options, platform

# Largest |difference| over largest |reference|.
TOLERANCE: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 3e-2}

LIBRARIES = ("flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")


@dataclasses.dataclass(frozen=True)
class Check:
    """One implementation of an op compared with the op's reference in one dtype.

    `error` is relative to the largest |reference|; None where no comparison was possible, and then
    `note` says why. `chosen` tells whether `auto` picks this implementation on this device.
    """

    op: str
    implementation: str
    dtype: str
    chosen: bool
    error: float | None
    tolerance: float | None
    ok: bool
    note: str = ""


def define_flags() -> None:
    options.json()


def main(argv: list[str]) -> int:
    """Prints the findings and returns 0 if everything holds, else 1."""
    del argv
    found = versions()
    problems = mismatches(found)
    for name, version in found.items():
        print(f"{name:<20} {version or '-'}")
    rocm, cuda = platform.is_rocm(os.environ), platform.is_cuda(os.environ)
    preset = platform.rocm_preset({}) if rocm else platform.cuda_preset({}) if cuda else {}
    device = attached()
    if isinstance(device, str):
        problems.append(device)
    else:
        names = f"{', '.join(device['devices'])} ({device['kind']})"
        print(f"{'backend':<20} {device['backend']}: {names}")
        silent = platform.silent_gpu(os.environ, device["backend"])
        problems += [silent] if silent else []
    named = "rocm" if rocm else "cuda" if cuda else "none needed on this platform"
    print(f"{'preset':<20} {named}")
    for name in preset:
        print(f"  {name}={os.environ.get(name)}")
    for problem in problems:
        print(f"PROBLEM: {problem}")

    checks = [] if isinstance(device, str) else list(check_ops())
    print(f"\n{'op':<18} {'implementation':<15} {'dtype':<9} {'error':>8} {'allowed':>8}")
    for check in checks:
        print(_row(check))
    print("* what `auto` picks on this device")
    ok = not problems and all(check.ok for check in checks)
    failed = sum(not check.ok for check in checks)
    print(f"\n{'all is well' if ok else f'{len(problems)} problems, {failed} failed checks'}")
    options.write_json(
        {
            "ok": ok,
            "versions": found,
            "problems": problems,
            "device": None if isinstance(device, str) else device,
            "preset": {name: os.environ.get(name) for name in preset},
            "checks": [dataclasses.asdict(check) for check in checks],
        }
    )
    return 0 if ok else 1


def attached() -> dict[str, Any] | str:
    """The devices that jax runs on, or what it says instead of running."""
    try:
        import jax

        return {
            "backend": jax.default_backend(),
            "devices": [str(device) for device in jax.devices()],
            "kind": jax.devices()[0].device_kind,
            "processes": jax.process_count(),
        }
    except Exception as failure:  # to tell why is what this verb is for
        asked = os.environ.get("JAX_PLATFORMS")
        chosen = f" with JAX_PLATFORMS={asked}" if asked else ""
        return f"jax finds no device{chosen}: {_told(failure)}"


def versions() -> dict[str, str | None]:
    """Versions of Python, jax, its plugins and our main libraries; None where not installed."""
    plugins = [*platform.ROCM_PLUGINS, *platform.CUDA_PLUGINS]
    found = {name: platform.version_of(name) for name in ("jax", "jaxlib", *plugins, *LIBRARIES)}
    missing_plugins = {name for name in plugins if found[name] is None}
    return {
        "python": host.python_version(),
        **{name: version for name, version in found.items() if name not in missing_plugins},
    }


def mismatches(found: Mapping[str, str | None]) -> list[str]:
    """What does not fit together in `found`: plugins and jaxlib must have jax's own version.

    A plugin may add a post-release to it (0.10.0.post1 belongs to 0.10.0).
    """
    problems = [
        f"{name} is not installed; pip install -r requirements.txt"
        for name, version in found.items()
        if version is None
    ]
    jax_version = found.get("jax")
    for name in ("jaxlib", *platform.ROCM_PLUGINS, *platform.CUDA_PLUGINS):
        version = found.get(name)
        if version and jax_version and version.split(".post")[0] != jax_version:
            problems.append(
                f"{name} {version} does not match jax {jax_version}; "
                f"pip install {name}=={jax_version}"
            )
    return problems


def check_ops(ops: Iterable[str] | None = None, kernels: str = "pallas_kernels") -> Iterable[Check]:
    """Compares every implementation of every op with its reference on the default device.

    The reference has no row of its own, unless `auto` picks it.

    Args:
      ops: names of op packages; all of `dispatch.OPS` by default.
      kernels: the package that holds them.

    Yields:
      A `Check` per op, implementation and dtype; one that is not `ok` for an op that is missing.
    """
    from pallas_kernels import dispatch

    for op in dispatch.OPS if ops is None else ops:
        name = f"{kernels}.{op}"
        try:
            module = importlib.import_module(name)
            example = importlib.import_module(f"{name}.example")
        except Exception as failure:  # a broken op must not hide the others
            yield Check(op, "-", "-", False, None, None, False, _told(failure))
            continue
        chosen = dispatch.resolve(op, module.IMPLEMENTATIONS)
        for dtype in TOLERANCE:
            yield from _check_op(op, module.IMPLEMENTATIONS, example, dtype, chosen)


def _check_op(
    op: str, table: Mapping[str, Any], example: Any, dtype: str, chosen: str
) -> Iterable[Check]:
    import jax
    import jax.numpy as jnp

    from pallas_kernels import dispatch

    tolerance = TOLERANCE[dtype]
    # XLA may multiply float32 in TF32 on a GPU, which would blur the reference itself.
    with jax.default_matmul_precision("highest"):
        key = jax.random.key(0, impl="unsafe_rbg")  # compiles twice as fast as threefry
        args, kwargs = example.draw(key, jnp.dtype(dtype))
        expected = compiled(table["reference"], args, kwargs)
        for name, implementation in table.items():
            if not dispatch.runs_here(name):
                continue
            if implementation is table["reference"]:
                if name == chosen:
                    note = "is the reference"
                    yield Check(op, name, dtype, True, 0.0, tolerance, True, note)
                continue
            try:
                error = relative_error(compiled(implementation, args, kwargs), expected)
            except Exception as failure:  # a broken kernel must not hide the others
                note = _told(failure)
                yield Check(op, name, dtype, name == chosen, None, tolerance, False, note)
            else:
                ok = error <= tolerance
                yield Check(op, name, dtype, name == chosen, error, tolerance, ok)


def compiled(function: Callable, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """`function(*args, **kwargs)` under `jax.jit`, as the model runs it: only arrays are traced."""
    import jax

    leaves, structure = jax.tree.flatten((args, dict(kwargs)))
    traced = [leaf if isinstance(leaf, jax.Array) else None for leaf in leaves]

    def call(arrays):
        pairs = zip(leaves, arrays, strict=True)
        merged = [leaf if array is None else array for leaf, array in pairs]
        call_args, call_kwargs = jax.tree.unflatten(structure, merged)
        return function(*call_args, **call_kwargs)

    return jax.jit(call)(traced)


def relative_error(actual: Any, expected: Any) -> float:
    """Largest |actual - expected| over largest |expected|, the worst over a pytree's leaves.

    Infinite where shapes or dtypes differ or a value is not finite on one side only; integer and
    boolean leaves must be equal.
    """
    import jax
    import numpy as np

    if jax.tree.structure(actual) != jax.tree.structure(expected):
        return float("inf")
    worst = 0.0
    for value, reference in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        if value.shape != reference.shape or value.dtype != reference.dtype:
            return float("inf")
        if not jax.numpy.issubdtype(reference.dtype, jax.numpy.inexact):
            worst = max(worst, 0.0 if np.array_equal(value, reference) else float("inf"))
            continue
        a, b = np.asarray(value, np.float64), np.asarray(reference, np.float64)
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return float("inf")
        finite = np.isfinite(b)
        if finite.any():
            scale = max(np.abs(b[finite]).max(), np.finfo(np.float32).tiny)
            worst = max(worst, float(np.abs(a[finite] - b[finite]).max() / scale))
    return worst


def _told(failure: Exception) -> str:
    """An exception in one line."""
    return " ".join(f"{type(failure).__name__}: {failure}".split())[:200]


def _row(check: Check) -> str:
    name = f"{check.implementation} *" if check.chosen else check.implementation
    error = "-" if check.error is None else f"{check.error:.1e}"
    allowed = "-" if check.tolerance is None else f"{check.tolerance:.0e}"
    verdict = f"{'OK' if check.ok else 'FAIL'} {check.note}".rstrip()
    return f"{check.op:<18} {name:<15} {check.dtype:<9} {error:>8} {allowed:>8}  {verdict}"
