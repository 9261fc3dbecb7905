"""Compiling ahead of time for GPUs that are not here: MI300X and H100.

    report = aot.compile("package.module:name", {"json": "arguments"}, target="mi300x")

`name(**arguments)` returns an `aot.Program`, a function with the shapes of its arguments. It is
called and compiled in a process of its own by the very compilers that run on those GPUs. The
`Report` is plain data: memory, kernels (registers, spills, shared memory, matrix instructions),
collectives. With `mesh={"data": 8}` the program is compiled for that many devices. See docs/aot.md.
"""

from zaya_jax.aot.compiler import Compiler, compile
from zaya_jax.aot.machine_code import buffers_of, matmuls_of
from zaya_jax.aot.program import Job, Program
from zaya_jax.aot.report import Counts, Kernel, Launch, Memory, Report
from zaya_jax.aot.targets import TARGETS, Target, target_of
from zaya_jax.aot.wheels import unavailable

__all__ = [
    "TARGETS",
    "Compiler",
    "Counts",
    "Job",
    "Kernel",
    "Launch",
    "Memory",
    "Program",
    "Report",
    "Target",
    "buffers_of",
    "matmuls_of",
    "compile",
    "target_of",
    "unavailable",
]
