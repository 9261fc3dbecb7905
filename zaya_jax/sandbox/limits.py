"""What a program in the sandbox may use, and what became of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from zaya_jax.errors import UserError

MIB = 1 << 20

Status = Literal["ok", "failed", "time", "cpu", "memory", "output", "files"]
"""How a program ended: with exit status 0; by itself, with another status or a signal; or killed,
because it used more of something than its `Limits` allow."""


@dataclass(frozen=True)
class Limits:
    """What one run may use; what is beyond is refused to the program, or ends it.

    Attributes:
        wall_seconds: from its start to its end.
        cpu_seconds: of all its processes together.
        memory: bytes, of all its processes and files together; one process may also not reserve
            more than this of addresses.
        processes: processes and threads at one time, the sandbox's own one among them.
        disk: bytes of its files, which are kept in memory.
        files: how many files, folders and links it may make.
        open_files: descriptors of one process.
        output: bytes of standard output and error together.
    """

    wall_seconds: float = 10.0
    cpu_seconds: float = 5.0
    memory: int = 512 * MIB
    processes: int = 16
    disk: int = 16 * MIB
    files: int = 256
    open_files: int = 64
    output: int = MIB

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise UserError(f"sandbox limit {field.name} is {value!r}; it must be above 0")
        for name, least in (("memory", 64 * MIB), ("processes", 4), ("open_files", 16)):
            if getattr(self, name) < least:
                raise UserError(
                    f"sandbox limit {name} is {getattr(self, name)}; Python needs at least {least}"
                )


@dataclass(frozen=True)
class Result:
    """What became of a run.

    Attributes:
        status: how it ended.
        exit_status: of the program; 128 + n if signal n ended it; None if the sandbox did.
        stdout: what it wrote, up to the limit.
        stderr: likewise.
        wall_seconds: how long it ran.
        cpu_seconds: of all its processes, as last seen: up to a tick of the watch may be missing.
        memory: the most bytes seen in use.
    """

    status: Status
    exit_status: int | None
    stdout: bytes
    stderr: bytes
    wall_seconds: float
    cpu_seconds: float
    memory: int

    @property
    def ok(self) -> bool:
        """Whether it ended by itself, with exit status 0."""
        return self.status == "ok"


class SandboxUnavailable(UserError):
    """This machine cannot run a program in the sandbox with all its limits in force."""
