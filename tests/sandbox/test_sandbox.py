"""What a program gets from the sandbox, and when nothing is run at all."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.sandbox import Limits, SandboxUnavailable, check, require, run_python, seccomp
from zaya_jax.sandbox import bubblewrap as walls
from zaya_jax.sandbox.limits import MIB

MEGABYTE = b"x" * (1 << 20)


def test_a_program_reads_its_input_and_prints():
    result = run_python(
        "import sys, helper\nprint(input()[::-1], sys.argv[1:], helper.two)",
        stdin="olé\n".encode(),
        arguments=["a b"],
        files={"helper.py": b"two = 2"},
    )
    assert (result.status, result.exit_status) == ("ok", 0)
    assert result.stdout.decode() == "élo ['a b'] 2\n"


def test_a_failure_is_a_result_and_keeps_its_message():
    result = run_python("print('before')\nraise ValueError('why')")
    assert (result.status, result.exit_status) == ("failed", 1)
    assert result.stdout == b"before\n"
    assert b"ValueError: why" in result.stderr
    assert run_python("def f(:").status == "failed"
    assert run_python("raise SystemExit(7)").exit_status == 7


def test_sets_are_ordered_alike_in_every_run():
    source = "print({str(i) for i in range(50)})"
    assert run_python(source).stdout == run_python(source).stdout


def test_much_input_that_is_read_late_or_never():
    counts = "import sys, time; time.sleep(.2); print(len(sys.stdin.buffer.read()))"
    assert run_python(counts, stdin=MEGABYTE * 3).stdout == b"3145728\n"
    assert run_python("print('deaf')", stdin=MEGABYTE * 3).stdout == b"deaf\n"


def test_output_is_kept_up_to_the_limit():
    result = run_python("print('x' * 5000, end='')", limits=Limits(output=1000))
    assert (result.status, result.stdout) == ("output", b"x" * 1000)
    result = run_python("print('x' * 1000, end='')", limits=Limits(output=1000))
    assert (result.status, len(result.stdout)) == ("ok", 1000)


def test_what_runs_used_is_told():
    result = run_python(
        "x = bytes(range(256)) * (150 << 12)\nwhile True: pass", limits=Limits(cpu_seconds=0.5)
    )
    assert result.status == "cpu" and result.exit_status is None
    assert 0.5 <= result.cpu_seconds < 2
    assert 150 * MIB < result.memory < 300 * MIB


def test_runs_side_by_side_leave_nothing_open():
    require()
    run_python("pass")
    before = len(os.listdir("/proc/self/fd"))
    said: dict[int, bytes] = {}

    def work(number: int) -> None:
        said[number] = run_python(f"print({number})").stdout

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {number: b"%d\n" % number for number in range(6)}
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("field", "value"),
    [("wall_seconds", 0), ("cpu_seconds", float("nan")), ("memory", MIB), ("processes", 1),
     ("output", -1), ("disk", None)],
)  # fmt: skip
def test_limits_that_cannot_be(field, value):
    with pytest.raises(ValueError, match=field):
        Limits(**{field: value})


@pytest.fixture
def fresh(monkeypatch):
    """Tools are looked for and checked anew, before and after."""
    for function in (walls.tools, check.require):
        function.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    for function in (walls.tools, check.require):
        function.cache_clear()


def test_no_bubblewrap_no_run(fresh):
    fresh.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SandboxUnavailable, match="apt-get install bubblewrap"):
        run_python("print(1)")


def fake_bwrap(folder: Path, script: str) -> str:
    file = folder / "bwrap"
    file.write_text(f"#!/bin/sh\n{script}\n")
    for path in (file, folder, *folder.parents):
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | stat.S_IXGRP | stat.S_IXOTH | stat.S_IROTH)
    return str(file)


def test_a_bubblewrap_that_may_not_make_namespaces(fresh, tmp_path):
    bwrap = fake_bwrap(tmp_path, "echo 'bwrap: No permissions to create new namespace' >&2; exit 1")
    fresh.setattr(shutil, "which", lambda name: bwrap)
    with pytest.raises(SandboxUnavailable, match="No permissions.*user.max_user_namespaces"):
        run_python("print(1)")


def test_a_sandbox_without_its_filter_is_refused(fresh):
    allow = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
    fresh.setattr(seccomp, "program", lambda: allow)
    with pytest.raises(SandboxUnavailable, match="has no network, has a filter of system calls$"):
        run_python("print(1)")


def test_a_sandbox_whose_processes_are_not_counted_is_refused(fresh):
    true = walls.arguments
    fresh.setattr(
        walls,
        "arguments",
        lambda *given: [a for a in true(*given) if not a.startswith("--nproc")],
    )
    with pytest.raises(SandboxUnavailable, match="has few processes"):
        run_python("print(1)")


def test_a_sandbox_that_shows_too_many_files_is_refused(fresh):
    true = walls.arguments

    def open_house(*given):
        command = true(*given)
        at = command.index("--remount-ro")
        return [*command[:at], "--ro-bind", "/etc", "/etc", *command[at:]]

    fresh.setattr(walls, "arguments", open_house)
    with pytest.raises(SandboxUnavailable, match="cannot see homes"):
        run_python("print(1)")


# A machine for the kernel's filter programs: enough of classic BPF to run ours.


def judged(machine: str, number: int, arguments=(0,) * 6, audit: int | None = None) -> int:
    """What the filter of a machine answers to a system call."""
    this = seccomp.MACHINES[machine]
    data = struct.pack("<iIQ6Q", number, this.audit if audit is None else audit, 0, *arguments)
    program = list(struct.iter_unpack("=HBBI", seccomp.program(machine)))
    at = register = 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        if code == 0x20:
            (register,) = struct.unpack_from("<I", data, k)
        elif code == 0x54:
            register &= k
        elif code == 0x06:
            return k
        else:
            test = {0x15: register == k, 0x35: register >= k, 0x45: bool(register & k)}[code]
            at += yes if test else no


ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
MACHINES = pytest.mark.parametrize("machine", seccomp.MACHINES)


@MACHINES
def test_the_filter_refuses_what_it_lists_and_lets_ordinary_calls_pass(machine):
    this = seccomp.MACHINES[machine]
    for numbers in seccomp.REFUSED.values():
        if numbers[this.column] is not None:
            assert judged(machine, numbers[this.column]) == ERRNO | 1
    read, execve = ((0, 59), (63, 221))[this.column]
    assert judged(machine, read) == judged(machine, execve) == ALLOW
    assert judged(machine, read, audit=0x40000003) == KILL  # the call of another architecture
    assert judged(machine, this.clone3) == judged(machine, 100_000) == ERRNO | 38


@MACHINES
@given(st.integers(0, 2**64 - 1))
def test_the_filter_looks_at_flags(machine, flags):
    this = seccomp.MACHINES[machine]
    wants = bool(flags & seccomp.NEW_NAMESPACES)
    assert judged(machine, this.clone, (flags, 0, 0, 0, 0, 0)) == (ERRNO | 1 if wants else ALLOW)
    wants = flags & 0x21 == 0x21
    assert judged(machine, this.mmap, (0, 0, 0, flags, 0, 0)) == (ERRNO | 1 if wants else ALLOW)
    unix = flags & 0xFFFFFFFF == seccomp.AF_UNIX
    assert judged(machine, this.socket, (flags, 0, 0, 0, 0, 0)) == (ALLOW if unix else ERRNO | 97)


def test_numbers_of_system_calls_are_those_of_this_machine():
    """On a machine with the kernel's headers: the list against them."""
    header = next(Path("/usr/include").glob("*-linux-gnu/asm/unistd_64.h"), None)
    if header is None or os.uname().machine != "x86_64":
        pytest.skip("no kernel headers of x86-64")
    words = (line.split() for line in header.read_text().splitlines())
    numbers = {word[1][5:]: int(word[2]) for word in words if len(word) == 3 and "__NR_" in word[1]}
    for name, ours in seccomp.REFUSED.items():
        assert numbers[name] == ours[0], name


def test_another_architecture_is_refused():
    with pytest.raises(SandboxUnavailable, match="s390x"):
        seccomp.program("s390x")
