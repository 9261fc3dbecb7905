"""Runs one program within the walls, watches what it uses, and ends it where that is too much."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import IO

from zaya_jax.sandbox import bubblewrap, seccomp
from zaya_jax.sandbox.bubblewrap import SCRATCH
from zaya_jax.sandbox.limits import Limits, Result, SandboxUnavailable, Status
from zaya_jax.sandbox.usage import Usage, of_tree

TICK_SECONDS = 0.02
"""How often the watch looks. What the kernel does not limit can be exceeded for so long."""
STARTING_SECONDS = 30.0
NICENESS = 10
CHUNK = 1 << 16

_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_slots = threading.BoundedSemaphore(_cores)


def run(
    command: Sequence[str],
    *,
    files: Mapping[str, bytes] | None = None,
    stdin: bytes = b"",
    limits: Limits | None = None,
) -> Result:
    """Runs a command in the sandbox to its end, whatever it does.

    At most as many run at a time as there are cores; others wait, which counts for no limit.

    Args:
        command: its path and arguments, as seen inside.
        files: contents of its files, by name; they lie in `/box`.
        stdin: what it can read.
        limits: what it may use; by default `Limits()`.

    Raises:
        SandboxUnavailable: the sandbox cannot be made.
    """
    with _slots, _Descriptors() as descriptors:
        return _Box(descriptors, command, files or {}, limits or Limits()).watch(stdin)


class _Descriptors:
    """Descriptors that are to be closed, each once."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self.stack = ExitStack()

    def __enter__(self) -> _Descriptors:
        return self

    def __exit__(self, *exception) -> None:
        try:
            self.stack.close()
        finally:
            while self._open:
                os.close(self._open.pop())

    def own(self, descriptor: int) -> int:
        """Takes one over."""
        self._open.add(descriptor)
        return descriptor

    def close(self, descriptor: int) -> None:
        """Closes one now."""
        self._open.remove(descriptor)
        os.close(descriptor)

    def pipe(self) -> tuple[int, int]:
        """A new pipe: where to read, where to write."""
        ends = os.pipe()
        return self.own(ends[0]), self.own(ends[1])

    def memory_file(self, data: bytes) -> int:
        """A new file with these contents, to be read from its start."""
        descriptor = self.own(os.memfd_create("box"))
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(data)
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor


@dataclass
class _Output:
    """What was read of standard output and error, and how much of it is kept."""

    most: int
    parts: dict[int, bytearray] = field(default_factory=dict)

    def add(self, descriptor: int, data: bytes) -> bool:
        """Keeps what there is room for; whether that was all."""
        room = self.most - sum(map(len, self.parts.values()))
        self.parts[descriptor] += data[: max(0, room)]
        return len(data) <= room


class _Box:
    """A sandbox with one program in it, from its start on."""

    def __init__(
        self,
        descriptors: _Descriptors,
        command: Sequence[str],
        files: Mapping[str, bytes],
        limits: Limits,
    ):
        self.limits, self.descriptors = limits, descriptors
        status, status_in = descriptors.pipe()
        gate_out, self.gate = descriptors.pipe()
        contents = {name: descriptors.memory_file(data) for name, data in files.items()}
        filter_ = descriptors.memory_file(seccomp.program())
        inherited = (status_in, gate_out, filter_, *contents.values())
        walls = bubblewrap.arguments(
            bubblewrap.tools(), limits, contents, status_in, gate_out, filter_
        )
        self.first_handle: int | None = None
        try:
            self.process = subprocess.Popen(
                [*walls, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=inherited,
                start_new_session=True,
                cwd="/",
                env={},
                **bubblewrap.privileges(),  # type: ignore[call-overload]
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise SandboxUnavailable(
                f"bwrap cannot be started, with root's rights given up: {error}"
            ) from None
        descriptors.stack.callback(self._close)
        for descriptor in inherited:
            descriptors.close(descriptor)
        self.first = self._first_inside(status)
        self.first_handle = descriptors.own(os.pidfd_open(self.first))
        with suppress(ProcessLookupError):
            if os.getpriority(os.PRIO_PROCESS, self.first) < NICENESS:
                os.setpriority(os.PRIO_PROCESS, self.first, NICENESS)
        with suppress(OSError):  # should memory run out, this goes first
            with open(f"/proc/{self.first}/oom_score_adj", "w") as file:
                file.write("1000")

    def watch(self, stdin: bytes) -> Result:
        """Lets the program run; feeds, reads and watches it until it has ended."""
        process, limits = self.process, self.limits
        assert process.stdin and process.stdout and process.stderr
        out, err = process.stdout.fileno(), process.stderr.fileno()
        output = _Output(limits.output, {out: bytearray(), err: bytearray()})
        pending = memoryview(stdin)
        selector = self.descriptors.stack.enter_context(selectors.DefaultSelector())
        ended = self.descriptors.own(os.pidfd_open(process.pid))
        selector.register(ended, selectors.EVENT_READ)
        for descriptor in (out, err):
            selector.register(descriptor, selectors.EVENT_READ)
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin.fileno(), selectors.EVENT_WRITE)

        started = time.monotonic()
        with suppress(BrokenPipeError):  # it ended before
            os.write(self.gate, b"x")
        killed: Status | None = None
        most, cpu, scratch, next_look = 0, 0.0, None, started
        while killed is None:
            events = selector.select(TICK_SECONDS)
            ready = {key.fd for key, _ in events}
            if ended in ready:
                break
            if process.stdin and process.stdin.fileno() in ready:
                pending = self._feed(selector, process.stdin, pending)
            for descriptor in ready & {out, err}:
                data = os.read(descriptor, CHUNK)
                if not data:
                    selector.unregister(descriptor)
                elif not output.add(descriptor, data):
                    killed = "output"
            now = time.monotonic()
            if now - started > limits.wall_seconds:
                killed = killed or "time"
            if now >= next_look:
                next_look = now + TICK_SECONDS
                if scratch is None:
                    scratch = self._open_scratch()
                    if scratch is None and now - started > STARTING_SECONDS:
                        raise SandboxUnavailable("the sandbox's scratch folder cannot be watched")
                seen, files, held = of_tree(self.first), *_held(scratch)
                most, cpu = max(most, seen.memory + held), max(cpu, seen.cpu_seconds)
                killed = killed or _beyond(limits, seen, files, held)
        wall = time.monotonic() - started
        self._end()
        if not self._drain(out, err, output) and killed is None:
            killed = "output"
        code = process.returncode
        status = killed or _status(code)
        return Result(
            status=status,
            exit_status=None if killed else code,
            stdout=bytes(output.parts[out]),
            stderr=bytes(output.parts[err]),
            wall_seconds=wall,
            cpu_seconds=cpu,
            memory=most,
        )

    def _first_inside(self, status: int) -> int:
        """Process id, as seen from outside, of the first process inside."""
        text = b""
        with selectors.DefaultSelector() as selector:
            selector.register(status, selectors.EVENT_READ)
            until = time.monotonic() + STARTING_SECONDS
            while b"}" not in text:
                if not selector.select(max(0.0, until - time.monotonic())):
                    raise SandboxUnavailable(f"bwrap did not start in {STARTING_SECONDS:.0f} s")
                data = os.read(status, CHUNK)
                if not data:
                    raise SandboxUnavailable(refusal(self._last_words()))
                text += data
        return int(json.loads(text)["child-pid"])

    def _last_words(self) -> str:
        assert self.process.stderr
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STARTING_SECONDS)
        return self.process.stderr.read(CHUNK).decode(errors="replace").strip()

    def _open_scratch(self) -> int | None:
        """The scratch folder, seen from outside; None before it is made, and after the end.

        Until the walls stand, the same path is the folder of this machine, of another size.
        """
        try:
            folder = os.open(f"/proc/{self.first}/root{SCRATCH}", os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, ProcessLookupError):
            return None
        found = os.fstatvfs(self.descriptors.own(folder))
        pages = -(-self.limits.disk // found.f_frsize)
        if found.f_blocks == pages and os.fstat(folder).st_dev != os.stat(SCRATCH).st_dev:
            return folder
        self.descriptors.close(folder)
        return None

    def _feed(
        self, selector: selectors.BaseSelector, pipe: IO[bytes], pending: memoryview
    ) -> memoryview:
        try:
            pending = pending[os.write(pipe.fileno(), pending[:CHUNK]) :] if pending else pending
        except BlockingIOError:
            return pending
        except BrokenPipeError:
            pending = pending[:0]
        if not pending:
            selector.unregister(pipe.fileno())
            pipe.close()
            self.process.stdin = None
        return pending

    def _drain(self, out: int, err: int, output: _Output) -> bool:
        """Reads what is left in the pipes; whether there was room for all of it.

        Their end comes when the last process inside is gone.
        """
        whole = True
        until = time.monotonic() + STARTING_SECONDS
        with selectors.DefaultSelector() as selector:
            for descriptor in (out, err):
                selector.register(descriptor, selectors.EVENT_READ)
            while selector.get_map():
                if not (events := selector.select(max(0.0, until - time.monotonic()))):
                    raise RuntimeError("a process in the sandbox outlives it")
                for key, _ in events:
                    data = os.read(key.fd, CHUNK)
                    if not data:
                        selector.unregister(key.fd)
                    whole &= output.add(key.fd, data)
        return whole

    def _end(self) -> None:
        """Ends the first process inside, with which all of them end, and bwrap."""
        if self.first_handle is not None:  # bwrap does it, too, but not if it ends at its beginning
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.first_handle, signal.SIGKILL)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _close(self) -> None:
        self._end()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def _beyond(limits: Limits, seen: Usage, files: int, held: int) -> Status | None:
    """Which limit is exceeded, if one is."""
    if seen.memory + held > limits.memory:
        return "memory"
    if seen.cpu_seconds > limits.cpu_seconds:
        return "cpu"
    return "files" if files > limits.files else None


def _held(scratch: int | None) -> tuple[int, int]:
    """Number of files in a folder's file system, and the bytes they hold."""
    if scratch is None:
        return 0, 0
    found = os.fstatvfs(scratch)
    return found.f_files - found.f_ffree - 1, (found.f_blocks - found.f_bfree) * found.f_frsize


XCPU = 128 + 24


def _status(code: int) -> Status:
    if code == 0:
        return "ok"
    return "cpu" if code == XCPU else "failed"


def refusal(words: str) -> str:
    """What to say where bwrap refuses, for a reason in its own words."""
    return (
        f"bubblewrap cannot make the sandbox here: {words or 'it says nothing'}. It needs user "
        "namespaces: in a container, run it with --security-opt seccomp=unconfined (and, under "
        "Docker, --cap-add=SYS_ADMIN); on Ubuntu 24.04, give bwrap its AppArmor profile (package "
        "apparmor-profiles); elsewhere see the sysctls user.max_user_namespaces and "
        "kernel.unprivileged_userns_clone"
    )
