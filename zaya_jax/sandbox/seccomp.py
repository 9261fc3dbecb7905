"""Which system calls a program in the sandbox is refused: a filter for the kernel.

The namespaces already take network, files and other processes away. The filter narrows what of the
kernel can be reached at all, and closes what the other limits cannot see: memory that belongs to no
process (memfd, System V and anonymous shared memory), and new user namespaces, in which a program
would be its own root.

A filter is a program of classic BPF over `struct seccomp_data {int nr; u32 arch; u64 ip;
u64 args[6];}`; see seccomp(2).
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass

from zaya_jax.sandbox.limits import SandboxUnavailable

# Each with its number on x86-64 and on arm64 (which lacks some).
REFUSED: dict[str, tuple[int, int | None]] = {
    # other processes' memory and descriptors
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # memory that belongs to no process
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # large and often attacked parts of the kernel
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "vmsplice": (278, 75),
    "fanotify_init": (300, 262),
    "inotify_init": (253, None),
    "inotify_init1": (294, 26),
    "modify_ldt": (154, None),
    "personality": (135, 92),
    "lookup_dcookie": (212, 18),
    # the machine
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "iopl": (172, None),
    "ioperm": (173, None),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    # placement of memory
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "set_mempolicy_home_node": (450, 450),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}
LAST_KNOWN = 450
"""System calls with larger numbers came later than this list: they are said not to exist."""


@dataclass(frozen=True)
class Machine:
    """How an architecture is told in `arch`, and the numbers of calls judged by their arguments."""

    audit: int
    column: int
    clone: int
    clone3: int
    socket: int
    mmap: int
    ioctl: int
    first_foreign: int | None  # from here on, calls of another ABI


MACHINES = {
    "x86_64": Machine(0xC000003E, 0, 56, 435, 41, 9, 16, 0x40000000),
    "aarch64": Machine(0xC00000B7, 1, 220, 435, 198, 222, 29, None),
}

NEW_NAMESPACES = 0x7E020080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}
SHARED_ANONYMOUS = 0x21  # MAP_SHARED | MAP_ANONYMOUS
AF_UNIX = 1
FAKE_INPUT = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: would type into a terminal

_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _AND, _EQUAL, _GREATER_EQUAL, _ANY_BIT, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06


def program(machine: str | None = None) -> bytes:
    """The filter, as bwrap's `--seccomp` reads it.

    Args:
        machine: `x86_64` or `aarch64`; by default this one.

    Raises:
        SandboxUnavailable: another architecture.
    """
    name = machine or platform.machine()
    if name not in MACHINES:
        raise SandboxUnavailable(
            f"the sandbox knows the system calls of {' and '.join(MACHINES)}, not of {name}"
        )
    this = MACHINES[name]
    code = [
        *_load(4),
        *_unless(_EQUAL, this.audit, _KILL),
        *_load(0),
    ]
    if this.first_foreign is not None:
        code += _if(_GREATER_EQUAL, this.first_foreign, _refuse(errno.ENOSYS))
    code += _if(_GREATER_EQUAL, LAST_KNOWN + 1, _refuse(errno.ENOSYS))
    code += _if(_EQUAL, this.clone3, _refuse(errno.ENOSYS))  # its flags cannot be read from here
    for numbers in REFUSED.values():
        number = numbers[this.column]
        if number is not None:
            code += _if(_EQUAL, number, _refuse(errno.EPERM))
    code += _call(this.clone, [*_argument(0), *_if(_ANY_BIT, NEW_NAMESPACES, _refuse(errno.EPERM))])
    code += _call(
        this.socket, [*_argument(0), *_unless(_EQUAL, AF_UNIX, _refuse(errno.EAFNOSUPPORT))]
    )
    shared = [*_argument(3), (_AND, 0, 0, SHARED_ANONYMOUS)]
    code += _call(this.mmap, [*shared, *_if(_EQUAL, SHARED_ANONYMOUS, _refuse(errno.EPERM))])
    inputs = [_if(_EQUAL, request, _refuse(errno.EPERM)) for request in FAKE_INPUT]
    code += _call(this.ioctl, [*_argument(1), *inputs[0], *inputs[1]])
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, k


def _load(offset: int) -> list[Instruction]:
    return [(_LOAD, 0, 0, offset)]


def _argument(index: int) -> list[Instruction]:
    return _load(16 + 8 * index)  # the low half, on the little-endian machines above


def _if(test: int, value: int, action: int) -> list[Instruction]:
    return [(test, 0, 1, value), (_RETURN, 0, 0, action)]


def _unless(test: int, value: int, action: int) -> list[Instruction]:
    return [(test, 1, 0, value), (_RETURN, 0, 0, action)]


def _call(number: int, body: list[Instruction]) -> list[Instruction]:
    """Runs `body` for one system call, then goes on with the number loaded again."""
    inner = [*body, *_load(0)]
    return [(_EQUAL, 0, len(inner), number), *inner]


def _refuse(error: int) -> int:
    return _ERRNO | error
