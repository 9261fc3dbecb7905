"""Settings of kernels: block sizes, warps and stages, by platform, in a file beside each kernel.

`<op>/tuned.json` maps a platform (`rocm`, `cuda`) to kernels and each kernel to its settings:

    {"rocm": {"forward": {"rows": 4, "num_warps": 4, "num_stages": 1}}, "cuda": ...}
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path

from jax.experimental.pallas import triton as plgpu

from pallas_kernels import dispatch

_trial: ContextVar[Mapping[tuple[str, str], Mapping[str, int]] | None] = ContextVar(
    "trial", default=None
)


@functools.cache
def table(op: str) -> Mapping[str, Mapping[str, Mapping[str, int]]]:
    """What `<op>/tuned.json` says."""
    return json.loads((Path(__file__).parent / op / "tuned.json").read_text())


def settings(op: str, kernel: str) -> Mapping[str, int]:
    """Settings of a kernel for the platform that is compiled for.

    An interpreted kernel takes those of `rocm`. `num_warps` counts waves of 64 threads on AMD and
    warps of 32 on NVIDIA.
    """
    trial = _trial.get() or {}
    if (op, kernel) in trial:
        return trial[op, kernel]
    known = table(op)
    return known.get(dispatch.platform(), known["rocm"])[kernel]


def compiler_params(chosen: Mapping[str, int]) -> plgpu.CompilerParams:
    """What Pallas is told. The class of it is what picks Triton as the compiler."""
    return plgpu.CompilerParams(num_warps=chosen["num_warps"], num_stages=chosen["num_stages"])


@contextlib.contextmanager
def trying(op: str, kernel: str, chosen: Mapping[str, int]) -> Iterator[None]:
    """Within it, a kernel takes these settings instead of those in the file.

    jax does not know of it: a jitted function that was traced outside keeps its settings.
    """
    token = _trial.set({**(_trial.get() or {}), (op, kernel): chosen})
    try:
        yield
    finally:
        _trial.reset(token)
