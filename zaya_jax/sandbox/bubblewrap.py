"""The walls of the sandbox: how bubblewrap (bwrap) is called, and with whose rights."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from zaya_jax.sandbox.limits import Limits, SandboxUnavailable

NOBODY = 65534
"""Who a program is inside; and outside as well where root runs the sandbox: root's processes are
not held to a number, and what is nobody's can read only what all may."""
BOX = "/box"
"""The folder of the program's files. It cannot be written to."""
SCRATCH = "/tmp"
"""The folder, empty at first, where it can write; and its working directory."""

ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": SCRATCH,
    "TMPDIR": SCRATCH,
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the same program prints the same, twice
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Tools:
    """What the sandbox is made of, on this machine.

    Attributes:
        bwrap: makes the walls.
        prlimit: sets the limits of processes, within them: there they count this sandbox only.
        python: runs the programs.
        folders: what must be seen inside for Python to run, read only.
    """

    bwrap: str
    prlimit: str
    python: str
    folders: tuple[str, ...]


@cache
def tools() -> Tools:
    """Finds them.

    Raises:
        SandboxUnavailable: one is missing; says how to get it.
    """
    if sys.platform != "linux":
        raise SandboxUnavailable(
            f"model-written code runs only in bubblewrap, under Linux; this is {sys.platform}"
        )
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxUnavailable(
            "model-written code runs only in bubblewrap, and there is no bwrap on PATH: install "
            "the package bubblewrap (apt-get install bubblewrap, dnf install bubblewrap)"
        )
    if Path(bwrap).stat().st_mode & stat.S_ISUID:
        raise SandboxUnavailable(
            f"{bwrap} is setuid root, which the sandbox's limits do not expect: install a bwrap "
            "that uses user namespaces (chmod u-s, where the kernel lets users make them)"
        )
    prlimit = next((path for path in ("/usr/bin/prlimit", "/bin/prlimit") if _exists(path)), None)
    if prlimit is None:
        raise SandboxUnavailable("there is no /usr/bin/prlimit: install the package util-linux")
    return Tools(bwrap, prlimit, *_python())


def arguments(
    found: Tools, limits: Limits, files: Mapping[str, int], status: int, gate: int, seccomp: int
) -> list[str]:
    """The command line up to the program's own.

    Args:
        files: name of each of the program's files, and the descriptor it is read from.
        status: descriptor where bwrap writes which process is the first inside.
        gate: descriptor it reads from before the program starts.
        seccomp: descriptor of the filter.
    """
    command = [
        *(found.bwrap, "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net"),
        *("--unshare-uts", "--unshare-cgroup-try", "--die-with-parent", "--new-session"),
        *("--clearenv", "--hostname", "box", "--uid", str(NOBODY), "--gid", str(NOBODY)),
        *("--cap-drop", "ALL"),
    ]
    for name, value in ENVIRONMENT.items():
        command += ["--setenv", name, value]
    for folder in found.folders:
        command += ["--ro-bind", folder, folder]
    for link in map(Path, ("/bin", "/lib", "/lib64", "/lib32")):
        if link.is_symlink():
            command += ["--symlink", os.readlink(link), str(link)]
        elif link.is_dir():
            command += ["--ro-bind", str(link), str(link)]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    # Of /dev only these; shared memory lies in the scratch folder, whose size is limited. No /proc.
    command += ["--dir", "/dev", "--symlink", SCRATCH, "/dev/shm"]
    for device in ("/dev/null", "/dev/urandom"):
        command += ["--dev-bind", device, device]
    for name, descriptor in files.items():
        command += ["--ro-bind-data", str(descriptor), f"{BOX}/{name}"]
    command += ["--size", str(limits.disk), "--tmpfs", SCRATCH, "--remount-ro", "/"]
    command += ["--chdir", SCRATCH, "--seccomp", str(seccomp)]
    command += ["--info-fd", str(status), "--block-fd", str(gate), "--"]
    cpu = max(1, round(limits.cpu_seconds + 0.5))
    return [
        *command,
        *(found.prlimit, f"--nproc={limits.processes}", f"--as={limits.memory}"),
        *(f"--cpu={cpu}:{cpu + 1}", f"--fsize={limits.disk}", f"--nofile={limits.open_files}"),
        *("--core=0", "--memlock=0", "--msgqueue=0", "--sigpending=64", "--nice=0", "--rtprio=0"),
        "--",
    ]


def privileges() -> dict[str, object]:
    """Arguments of `subprocess.Popen` that give root's rights up, where root runs the sandbox."""
    if os.geteuid() != 0:
        return {}
    return {"user": NOBODY, "group": NOBODY, "extra_groups": ()}


def _python() -> tuple[str, tuple[str, ...]]:
    """An interpreter that can be seen from inside, and the folders it needs.

    This process's own, without its virtual environment, if whoever runs the sandbox may read it:
    nobody cannot, where it lies in root's home. Else the system's.
    """
    own = Path(sys.base_prefix).resolve()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    system = (f"/usr/bin/{name}" for name in (version, "python3.13", "python3.12", "python3.11"))
    for path in (own / "bin" / version, *map(Path, system), Path("/usr/bin/python3")):
        if _exists(path) and _readable(path.resolve()):
            prefix = path.resolve().parents[1]
            folders = ("/usr",) if prefix.is_relative_to("/usr") else ("/usr", str(prefix))
            return str(path), folders
    raise SandboxUnavailable(
        f"no Python that the sandbox can read: {own} belongs to root alone, and there is no "
        "/usr/bin/python3 (install the package python3)"
    )


def _exists(path: str | Path) -> bool:
    return os.path.exists(path)


def _readable(path: Path) -> bool:
    """Whether whoever runs the sandbox may reach a file; for root, whether everybody may."""
    if os.geteuid() != 0:
        return os.access(path, os.X_OK)
    return all(part.stat().st_mode & stat.S_IXOTH for part in (path, *path.parents))
