"""Programs that mean harm, and how each must end.

An attack prints ESCAPED, with what it got, where it got through; the tests look for that word, for
the status, and at the host. `{...}` are filled in by the test: a secret file, a port and an
abstract socket that this machine listens on, a process that must live.
"""

from __future__ import annotations

from dataclasses import dataclass

from zaya_jax.sandbox.limits import MIB, Limits

LIMITS = Limits(
    wall_seconds=20.0,  # of a busy machine; those that wait for it have a brief one of their own
    cpu_seconds=0.5,
    memory=128 * MIB,
    processes=12,
    disk=MIB,
    files=100,
    output=1 << 16,
)
BRIEF = 0.6


@dataclass(frozen=True)
class Attack:
    """A program, the statuses it may end with, and how long it may run."""

    source: str
    statuses: tuple[str, ...]
    wall_seconds: float = LIMITS.wall_seconds


def refused(source: str) -> Attack:
    """An attack whose every step fails, after which it ends in peace."""
    return Attack(PRELUDE + source, ("ok",))


# Calls the kernel itself; tries out steps, each of which is to fail.
PRELUDE = """
import ctypes, errno, os, platform, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
x86 = platform.machine() == "x86_64"

def syscall(on_x86, on_arm, *arguments):
    if libc.syscall(on_x86 if x86 else on_arm, *arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "done"

def attempt(step, *arguments):
    try:
        got = step(*arguments)
    except (OSError, MemoryError, AttributeError, ValueError) as error:
        print("refused:", type(error).__name__, error)
    else:
        print("ESCAPED", step, arguments, repr(got)[:80])
"""

ATTACKS = {
    # processes
    "fork_bomb": Attack(
        "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass",
        ("cpu", "time"),
    ),
    "fork_bomb_of_daemons": Attack(
        """
import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
    signal.signal(s, signal.SIG_IGN)
while True:
    try:
        if os.fork():
            os._exit(0)
        os.setsid()
    except OSError:
        pass
""",
        ("ok", "cpu", "time"),  # the first process ends well, and takes the others with it
    ),
    "thread_bomb": Attack(
        """
import threading, time
started = 0
try:
    for _ in range(1000):
        threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
        started += 1
except (RuntimeError, MemoryError):
    pass
print("ESCAPED" if started > 12 else "refused", started)
""",
        ("ok",),
    ),
    "daemon_that_stays": Attack(
        """
import os, time
if os.fork() == 0:
    os.setsid()
    for fd in range(3):
        os.close(fd)
    time.sleep(1000)
""",
        ("ok",),
    ),
    "signals_to_everyone": refused(
        """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for pid in ({victim}, os.getppid() + 1000, 4, 100, 1000):
    attempt(os.kill, pid, signal.SIGKILL)
os.kill(1, signal.SIGKILL)  # the sandbox's first process: the kernel does not deliver it
"""
    ),
    "kill_all": Attack("import os\nos.kill(-1, 9)", ("ok", "failed")),
    "stopping_itself": Attack(
        "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)", ("time",), BRIEF
    ),
    "deaf_to_signals": Attack(
        """
import signal
for s in range(1, 65):
    try:
        signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
""",
        ("cpu",),
    ),
    "ptrace": refused(
        """
for pid in (1, os.getppid(), {victim}):
    attempt(syscall, 101, 117, 16, pid, 0, 0)  # PTRACE_ATTACH
    attempt(syscall, 310, 270, pid, 0, 0, 0, 0, 0)  # process_vm_readv
    attempt(syscall, 311, 271, pid, 0, 0, 0, 0, 0)  # process_vm_writev
attempt(syscall, 438, 438, 3, 0, 0)  # pidfd_getfd
"""
    ),
    # memory
    "memory_at_once": Attack("x = bytearray(1 << 30)", ("failed",)),
    "memory_bit_by_bit": Attack(
        "x = []\nwhile True:\n    x.append(bytearray(1 << 20))", ("failed", "memory")
    ),
    "memory_of_many": Attack(
        """
import os, time
for _ in range(8):
    if os.fork() == 0:
        x = bytearray(60 << 20)
        for i in range(0, len(x), 4096):
            x[i] = 1
        time.sleep(9)
time.sleep(9)
print("ESCAPED")
""",
        ("memory",),
    ),
    "memory_of_nobody": refused(
        """
import mmap
attempt(mmap.mmap, -1, 1 << 20)  # shared and anonymous
attempt(os.memfd_create, "x")
attempt(syscall, 29, 194, 0, 1 << 20, 0o1600)  # shmget
attempt(syscall, 68, 186, 0, 0o1600)  # msgget
attempt(syscall, 240, 180, b"/q", os.O_CREAT | os.O_RDWR, 0o600, 0)  # mq_open
attempt(open, "/dev/zero")
"""
    ),
    "pinned_memory": refused(
        "x = bytearray(1 << 20)\nattempt(syscall, 149, 228, (ctypes.c_char * len(x)).from_buffer(x)"
        ", ctypes.c_size_t(len(x)))"
    ),
    # files
    "one_large_file": Attack(
        "with open('x', 'wb') as f:\n    while True:\n        f.write(bytes(1 << 16))",
        ("failed",),
    ),
    "many_files": refused(
        """
def fill(folder):
    for i in range(50):
        with open(folder + "/f" + str(i), "wb") as file:
            file.write(bytes(1 << 16))
attempt(fill, "/tmp")
"""
    ),
    "shared_memory_folder": refused(
        """
def fill(folder):
    for i in range(50):
        with open(folder + "/f" + str(i), "wb") as file:
            file.write(bytes(1 << 16))
attempt(fill, "/dev/shm")
"""
    ),
    "endless_empty_files": Attack(
        """
import itertools
for i in itertools.count():
    open("f" + str(i), "w").close()
""",
        ("files",),
    ),
    "endless_folders": Attack(
        "import os\nwhile True:\n    os.mkdir('x')\n    os.chdir('x')", ("files",)
    ),
    "endless_links": Attack(
        """
import itertools, os
for i in itertools.count():
    os.symlink("x" * 4000, "f" + str(i))
""",
        ("files", "failed"),
    ),
    "hole_in_a_file": refused(
        """
with open("x", "wb") as file:
    attempt(os.ftruncate, file.fileno(), 1 << 40)
    attempt(os.posix_fallocate, file.fileno(), 0, 1 << 30)
"""
    ),
    "writing_elsewhere": refused(
        """
for folder in ("/", "/box", "/usr", "/usr/bin", "/usr/lib", "/dev", "/etc", "/var", "/home"):
    attempt(open, folder + "/x", "w")
    attempt(os.mkdir, folder + "/x")
attempt(os.remove, sys.argv[0])
attempt(os.rename, "/tmp", "/x")
attempt(os.chmod, "/usr/bin/env", 0o777)
"""
    ),
    "reading_files": refused(
        """
for path in ({secret!r}, "/etc/passwd", "/etc/shadow", "/root", "/home", "/var", "/run", "/sys",
             "/boot", "/etc/hostname", "/etc/resolv.conf", "/dev/mem", "/dev/kmsg", "/dev/sda"):
    attempt(os.listdir if path.count("/") == 1 else open, path)
"""
    ),
    "symlinks": refused(
        """
for number, target in enumerate(({secret!r}, "/proc/1/root/etc/passwd", "../" * 30 + "etc/passwd",
                                 "/proc/self/root/../../etc/passwd")):
    os.symlink(target, str(number))
    attempt(open, str(number))
    attempt(open, "/tmp/../" + target)
attempt(os.link, "/usr/bin/env", "x")
attempt(syscall, 303, 264, -100, b"/usr", 0, 0, 0)  # name_to_handle_at
attempt(syscall, 304, 265, -100, 0, 0)  # open_by_handle_at
"""
    ),
    "proc": refused(
        """
for path in ("/proc/1/environ", "/proc/self/mem", "/proc/sys/kernel/core_pattern", "/proc/kcore",
             "/proc/sysrq-trigger"):
    attempt(open, path)
attempt(os.listdir, "/proc")
os.mkdir("p")
attempt(syscall, 165, 40, b"proc", b"/tmp/p", b"proc", 0, 0)
"""
    ),
    "descriptors_left_open": refused(
        "for fd in range(3, 1024):\n    attempt(os.fstat, fd)\nos.set_blocking(0, False)"
    ),
    "endless_descriptors": refused(
        """
def hoard():
    kept = []
    for _ in range(500):
        kept += os.pipe()
attempt(hoard)
"""
    ),
    "environment": refused(
        "more = set(os.environ) - set({allowed!r})\nprint('ESCAPED' if more else '', more)"
    ),
    # network
    "network": refused(
        """
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET, 40):
    attempt(socket.socket, family, socket.SOCK_RAW)
    attempt(socket.socket, family, socket.SOCK_STREAM)
attempt(socket.create_connection, ("127.0.0.1", {port}), 1)
attempt(socket.create_connection, ("1.1.1.1", 53), 1)
attempt(socket.getaddrinfo, "example.org", 80)
"""
    ),
    "abstract_socket": refused(
        """
s = socket.socket(socket.AF_UNIX)
attempt(s.connect, chr(0) + {abstract!r})
"""
    ),
    # output
    "endless_output": Attack("while True:\n    print('x' * 1000)", ("output",)),
    "endless_errors": Attack(
        "import sys\nwhile True:\n    sys.stderr.write('x' * 100)", ("output",)
    ),
    "output_of_many": Attack(
        "import os\nos.fork()\nos.fork()\nwhile True:\n    os.write(1, bytes(1 << 16))",
        ("output",),
    ),
    "closed_output": Attack(
        "import os, time\nfor fd in range(3):\n    os.close(fd)\ntime.sleep(99)", ("time",), BRIEF
    ),
    # time
    "sleep": Attack("import time\ntime.sleep(1000)", ("time",), BRIEF),
    "waiting_for_input": Attack("import os\nos.read(os.pipe()[0], 1)", ("time",), BRIEF),
    "busy_loop": Attack("while True:\n    pass", ("cpu",)),
    "busy_loops": Attack(
        "import os\nfor _ in range(3):\n    os.fork()\nwhile True:\n    pass", ("cpu",)
    ),
    "busy_in_one_instruction": Attack("x = 10 ** (10 ** 8)", ("cpu", "failed")),
    "busy_in_a_pattern": Attack("import re\nre.match('(a+)+$', 'a' * 40 + 'b')", ("cpu",)),
    # rights
    "root": refused(
        """
for step in (os.setuid, os.setgid):
    attempt(step, 0)
attempt(os.setgroups, [0])
attempt(os.chroot, "/tmp")
attempt(os.mknod, "disk", 0o60600, os.makedev(8, 0))
attempt(syscall, 126, 91, 0, 0)  # capset
print(os.popen("su -c id 2>&1; sudo -n id 2>&1").read().replace("uid=0", "ESCAPED"))
"""
    ),
    "namespaces": refused(
        """
attempt(syscall, 272, 97, 0x10000000)  # unshare(CLONE_NEWUSER)
attempt(syscall, 56, 220, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)  # clone(CLONE_NEWUSER)
attempt(syscall, 435, 435, 0, 0)  # clone3
attempt(syscall, 308, 268, 0, 0)  # setns
attempt(syscall, 165, 40, b"x", b"/tmp", b"tmpfs", 0, 0)  # mount
attempt(syscall, 155, 41, b"/tmp", b"/tmp")  # pivot_root
attempt(syscall, 430, 430, b"tmpfs", 0)  # fsopen
"""
    ),
    "depths_of_the_kernel": refused(
        """
size = (ctypes.c_char * 256)()
for numbers in ((321, 280), (298, 241), (425, 425), (250, 219), (323, 282), (246, 104), (175, 105),
                (169, 142), (103, 116), (135, 92), (300, 262), (999, 999)):
    attempt(syscall, *numbers, size, size, 0, 0)
"""
    ),
    "foreign_system_calls": Attack(
        """
import ctypes, mmap, platform
if platform.machine() == "x86_64":  # int 0x80: the kernel's 32-bit door, with numbers of its own
    page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)
    page.write(bytes.fromhex("b814000000cd80c3"))
    print("ESCAPED", ctypes.CFUNCTYPE(ctypes.c_int)(
        ctypes.addressof(ctypes.c_char.from_buffer(page)))())
else:
    raise SystemExit(1)
""",
        ("failed",),
    ),
    "limits": refused(
        """
import resource
for limit in (resource.RLIMIT_NPROC, resource.RLIMIT_AS, resource.RLIMIT_CPU,
              resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
    hard = resource.getrlimit(limit)[1]
    attempt(resource.setrlimit, limit, (hard, hard + 1))
    attempt(resource.setrlimit, limit, (-1, -1))
attempt(os.nice, -20)
attempt(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))
attempt(syscall, 227, 112, 0, (ctypes.c_long * 2)())  # clock_settime
attempt(socket.sethostname, "x")
"""
    ),
    "terminal": refused(
        """
import fcntl
attempt(open, "/dev/tty")
for fd in range(3):
    attempt(fcntl.ioctl, fd, 0x5412, b"x")  # TIOCSTI
"""
    ),
    "crash": Attack("import ctypes\nctypes.string_at(1)", ("failed",)),
    "endless_recursion": Attack(
        "import sys\nsys.setrecursionlimit(1 << 30)\nf = lambda x: [f(x)]\nf(1)",
        ("failed", "memory", "cpu"),
    ),
}
