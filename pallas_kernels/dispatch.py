"""Which implementation of an op runs on which platform.

Every op is a folder with the same three parts:

* `reference.py`: the definition, in plain jnp; slow and obviously right;
* `xla.py`: fast and portable (CPU included); where XLA already fuses the definition as it is
  written, an op registers its reference under the name `xla` instead of repeating it;
* `example.py`: `draw(key, dtype)` returns `(args, kwargs)` of a small call, for tests and `doctor`.

An op's `__init__.py` holds its `IMPLEMENTATIONS` and the public function, which asks `select`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

import jax

# Fastest first. GPU kernels written in Pallas register as "triton".
PREFERENCE: Mapping[str, tuple[str, ...]] = {
    "cpu": ("xla", "reference"),
    "gpu": ("triton", "xla", "reference"),
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


def resolve(op: str, table: Mapping[str, Callable], implementation: str = "auto") -> str:
    """The name of the implementation that a call of `op` would use on the default backend.

    Raises:
      ValueError: `implementation` is neither `auto` nor one of those in `table`.
    """
    if implementation == "auto":
        order = PREFERENCE.get(jax.default_backend(), ("xla", "reference"))
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
