"""Which implementation of an op runs on which platform.

Every op is a folder with the same three parts:

* `reference.py`: the definition, in plain jnp; slow and obviously right;
* `xla.py`: fast and portable (CPU included); where XLA already fuses the definition as it is
  written, an op registers its reference under the name `xla` instead of repeating it;
* `example.py`: `draw(key, dtype)` returns `(args, kwargs)` of a small call, for tests and `doctor`;
  with a `triton` implementation also `shapes_8b(form)`, the calls to compile (see `shapes`).

`triton.py`, where there is one, is written in Pallas for AMD and NVIDIA. Settings that differ
between them ask `platform()`, which tells what is compiled for, also where no GPU is attached.

An op's `__init__.py` holds its `IMPLEMENTATIONS` and the public function. Where an implementation
does not take every call, `SUPPORTS` holds beside it a function of the same arguments that says what
it lacks (None where nothing), and the public function goes through `call`; else `select` will do.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jax
from jax.extend import backend

from pallas_kernels import interpret

# Fastest first. GPU kernels written in Pallas register as "triton".
PREFERENCE: Mapping[str, tuple[str, ...]] = {
    "cpu": ("xla", "reference"),
    "cuda": ("triton", "xla", "reference"),
    "rocm": ("triton", "xla", "reference"),
    "tpu": ("xla", "reference"),
}
ANYWHERE = ("xla", "reference")
GPU_ONLY = frozenset({"triton"})

# What an implementation lacks for a call, by the name of the implementation.
Supports = Mapping[str, Callable[..., str | None]]

OPS = (
    "cca_mix",
    "attention",
    "decode_attention",
    "router",
    "grouped_matmul",
    "residual_norm",
    "cross_entropy",
    "newton_schulz",
    "projections",
)

_compiling_for: ContextVar[str | None] = ContextVar("compiling_for", default=None)


def platform() -> str:
    """What programs are compiled for: `cpu`, `cuda`, `rocm` or `tpu`."""
    chosen = _compiling_for.get()
    if chosen is not None:
        return chosen
    name = jax.default_backend()
    if name != "gpu":
        return name
    return "rocm" if "rocm" in backend.get_backend().platform_version else "cuda"


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Within it, ops choose as on `platform`: to compile for a device that is not attached.

    jax does not know of it: a jitted function that was traced outside keeps its choice.
    """
    token = _compiling_for.set(platform)
    try:
        yield
    finally:
        _compiling_for.reset(token)


def runs_here(name: str) -> bool:
    """Whether an implementation of this name can run on `platform()`, or is to be interpreted."""
    return name not in GPU_ONLY or platform() in ("cuda", "rocm") or interpret.enabled()


def resolve(op: str, table: Mapping[str, Callable], implementation: str = "auto") -> str:
    """The name of the implementation that a call of `op` would use on `platform()`.

    Raises:
      ValueError: `implementation` is neither `auto` nor one of those in `table`, or cannot run on
        this platform.
    """
    if implementation == "auto":
        order = PREFERENCE.get(platform(), ANYWHERE)
        return next(name for name in order if name in table)
    if implementation not in table:
        accepted = ", ".join(["auto", *table])
        raise ValueError(f"{op}: no implementation {implementation!r}; accepted: {accepted}")
    if not runs_here(implementation):
        accepted = ", ".join(["auto", *filter(runs_here, table)])
        raise ValueError(
            f"{op}: {implementation!r} needs an AMD or NVIDIA GPU and jax runs on {platform()}; "
            f"accepted: {accepted} ({interpret.VARIABLE}=1 interprets the kernel, to debug it)"
        )
    return implementation


def select(op: str, table: Mapping[str, Callable], implementation: str = "auto") -> Callable:
    """The implementation of `op` to call; see `resolve`."""
    return table[resolve(op, table, implementation)]


def call(
    op: str,
    table: Mapping[str, Callable],
    supports: Supports,
    implementation: str,
    *args: Any,
    **options: Any,
) -> Any:
    """Runs `op` with an implementation that takes this call.

    `auto` passes over what does not support the call and says so once in the log.

    Raises:
      ValueError: as `resolve`, or the implementation that was asked for lacks something.
    """
    name = resolve(op, table, implementation)
    lack = supports[name](*args, **options) if name in supports else None
    if lack is not None and implementation != "auto":
        raise ValueError(f"{op}: {name!r} does not take this call: {lack}")
    if lack is not None:
        refused, name = name, next(other for other in ANYWHERE if other in table)
        _say_once(f"{op}: {name} instead of {refused}: {lack}")
    return table[name](*args, **options)


@functools.cache
def _say_once(message: str) -> None:
    logging.getLogger(__name__).warning(message)


def load(op: str):
    """The module of an op by name, e.g. `load("attention").IMPLEMENTATIONS`."""
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}; accepted: {', '.join(OPS)}")
    return importlib.import_module(f"pallas_kernels.{op}")
