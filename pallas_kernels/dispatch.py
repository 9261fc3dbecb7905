"""Which implementation of an op runs on which platform.

Every op is a folder with the same three parts:

* `reference.py`: the definition, in plain jnp; slow and obviously right;
* `xla.py`: fast and portable (CPU included); where XLA already fuses the definition as it is
  written, an op registers its reference under the name `xla` instead of repeating it;
* `example.py`: `draw(key, dtype)` returns `(args, kwargs)` of a small call, for tests and `doctor`;
  with a `triton` implementation also `shapes_8b(form)`, the calls to compile (see `shapes`).

`triton.py`, where there is one, is written in Pallas for AMD and NVIDIA. Settings that differ
between them ask `platform()`, which tells what is compiled for, also where no GPU is attached.

An op's `__init__.py` holds its `IMPLEMENTATIONS` and the public function, which asks `select`.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar

import jax
from jax.extend import backend

# Fastest first. GPU kernels written in Pallas register as "triton".
PREFERENCE: Mapping[str, tuple[str, ...]] = {
    "cpu": ("xla", "reference"),
    "cuda": ("triton", "xla", "reference"),
    "rocm": ("triton", "xla", "reference"),
    "tpu": ("xla", "reference"),
}

OPS = (
    "cca_mix",
    "attention",
    "decode_attention",
    "router",
    "grouped_matmul",
    "residual_norm",
    "cross_entropy",
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


def resolve(op: str, table: Mapping[str, Callable], implementation: str = "auto") -> str:
    """The name of the implementation that a call of `op` would use on `platform()`.

    Raises:
      ValueError: `implementation` is neither `auto` nor one of those in `table`.
    """
    if implementation == "auto":
        order = PREFERENCE.get(platform(), ("xla", "reference"))
        return next(name for name in order if name in table)
    if implementation not in table:
        accepted = ", ".join(["auto", *table])
        raise ValueError(f"{op}: no implementation {implementation!r}; accepted: {accepted}")
    return implementation


def select(op: str, table: Mapping[str, Callable], implementation: str = "auto") -> Callable:
    """The implementation of `op` to call; see `resolve`."""
    return table[resolve(op, table, implementation)]


def load(op: str):
    """The module of an op by name, e.g. `load("attention").IMPLEMENTATIONS`."""
    if op not in OPS:
        raise ValueError(f"unknown op {op!r}; accepted: {', '.join(OPS)}")
    return importlib.import_module(f"pallas_kernels.{op}")
