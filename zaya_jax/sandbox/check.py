"""Whether the sandbox holds on this machine: its limits are tried out before anything runs in it.

A kernel, a container or a bwrap of another version may not enforce one of them. Then nothing is
run: a sandbox that is weaker than it says is none.
"""

from __future__ import annotations

import json
import os
from functools import cache

from zaya_jax.sandbox import box, bubblewrap
from zaya_jax.sandbox.limits import MIB, Limits, SandboxUnavailable

LIMITS = Limits(memory=128 * MIB, processes=8, disk=MIB, wall_seconds=20.0)

PROBE = f"""
import errno, json, os, resource, socket

def refused(call, *errors):
    try:
        call()
    except MemoryError:
        return True
    except OSError as error:
        return error.errno in errors
    return False

def fork_many():
    children = []
    try:
        for _ in range({2 * LIMITS.processes}):
            child = os.fork()
            if child == 0:
                os.close(keep)
                os.read(hold, 1)
                os._exit(0)
            children.append(child)
    finally:
        os.close(keep)
        for child in children:
            os.waitpid(child, 0)

hold, keep = os.pipe()

def fill():
    for i in range(4):
        with open(f"big{{i}}", "wb") as file:
            file.write(bytes({LIMITS.disk // 2}))

print(json.dumps({{
    "runs as nobody": os.getuid() == {bubblewrap.NOBODY},
    "cannot see processes": os.getpid() <= 4 and not os.path.exists("/proc/1"),
    "cannot see homes": not any(map(os.path.exists, ("/home", "/root", "/etc/passwd"))),
    "cannot write to folders": refused(lambda: open("/x", "w"), errno.EROFS)
        and refused(lambda: open("{bubblewrap.BOX}/x", "w"), errno.EROFS),
    "has a limited scratch folder": refused(fill, errno.ENOSPC),
    "has no network": refused(lambda: socket.socket(), errno.EAFNOSUPPORT),
    "has a filter of system calls": refused(lambda: os.memfd_create("x"), errno.EPERM)
        and refused(lambda: os.mkfifo("p") or os.chroot("/"), errno.EPERM),
    "has limited memory": refused(lambda: bytearray({2 * LIMITS.memory}), errno.ENOMEM),
    "cannot raise its limits": resource.getrlimit(resource.RLIMIT_NPROC)[1] == {LIMITS.processes}
        and refused(lambda: os.nice(-1), errno.EPERM, errno.EACCES),
    "has few processes": refused(fork_many, errno.EAGAIN),
}}))
"""


@cache
def require() -> bubblewrap.Tools:
    """What the sandbox is made of here, after it was seen to hold; tried once in a process.

    Raises:
        SandboxUnavailable: it cannot be made, or does not hold; says what is wrong.
    """
    found = bubblewrap.tools()
    _check_kernel()
    result = box.run(
        [found.python, "-s", f"{bubblewrap.BOX}/probe.py"],
        files={"probe.py": PROBE.encode()},
        limits=LIMITS,
    )
    if not result.ok:
        words = result.stderr.decode(errors="replace").strip()[-2000:]
        if words.startswith("bwrap:"):
            raise SandboxUnavailable(box.refusal(words))
        raise SandboxUnavailable(
            f"the sandbox does not run Python here ({result.status}, exit status "
            f"{result.exit_status}): {words}"
        )
    broken = [claim for claim, holds in json.loads(result.stdout).items() if not holds]
    if broken:
        raise SandboxUnavailable(
            "the sandbox does not hold on this machine: it is not so that a program in it "
            f"{', '.join(broken)}"
        )
    return found


def _check_kernel() -> None:
    """What the watch reads, and what it waits with."""
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        raise SandboxUnavailable(
            "this kernel does not list children in /proc (CONFIG_PROC_CHILDREN): the sandbox "
            "could not watch its processes"
        )
    if not hasattr(os, "pidfd_open"):
        raise SandboxUnavailable("the sandbox needs Linux 5.3 or newer (pidfd_open)")
