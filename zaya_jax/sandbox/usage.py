"""What a tree of processes uses right now, read from /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """Of a process and all its descendants.

    Attributes:
        processes: how many there are.
        cpu_seconds: theirs, and of those that ended and were waited for.
        memory: bytes they hold that no file backs. What a fork shares counts once for each.
    """

    processes: int
    cpu_seconds: float
    memory: int


def of_tree(root: int) -> Usage:
    """The usage of process `root` and its descendants; zeros if it has ended."""
    processes, ticks, memory = 0, 0, 0
    waiting, seen = [root], {root}
    while waiting:
        folder = Path("/proc", str(waiting.pop()))
        try:
            # the name in parentheses may hold anything: what follows its end is numbers
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            memory += _memory((folder / "status").read_text(errors="replace"))
            found = [
                int(child)
                for thread in (folder / "task").iterdir()
                for child in (thread / "children").read_text().split()
            ]
        except (OSError, ValueError, IndexError):  # it ended meanwhile
            continue
        processes += 1
        ticks += sum(map(int, fields[11:15]))  # user, system; and of children that ended
        waiting += (child for child in found if child not in seen)
        seen.update(found)
    return Usage(processes, ticks / TICKS, memory)


def _memory(status: str) -> int:
    counted = ("RssAnon:", "RssShmem:", "VmSwap:")
    return (
        sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(counted)) << 10
    )
