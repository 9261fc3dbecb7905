"""The sandbox holds against programs that mean harm, and the machine stays usable meanwhile."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.sandbox.attacks import ATTACKS, LIMITS
from zaya_jax.sandbox import require, run_python
from zaya_jax.sandbox.bubblewrap import ENVIRONMENT

SECRET = "the host's secret"
SLACK_SECONDS = 10.0  # of a busy machine


@pytest.fixture(scope="module")
def host(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """What of this machine is attacked: a file, two servers and a process."""
    require()
    secret = tmp_path_factory.mktemp("host") / "secret"
    secret.write_text(SECRET)
    for folder in (secret, *secret.parents):  # anybody may read it: walls alone keep it
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    abstract = f"zaya-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as internet,
        socket.socket(socket.AF_UNIX) as local,
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]) as victim,
    ):
        local.bind("\0" + abstract)
        local.listen()
        for server in (internet, local):
            server.setblocking(False)
        yield SimpleNamespace(
            secret=str(secret),
            abstract=abstract,
            victim=victim,
            servers=(internet, local),
            words={
                "secret": str(secret),
                "abstract": abstract,
                "victim": victim.pid,
                "port": internet.getsockname()[1],
                "allowed": [*ENVIRONMENT, "PWD", "LC_CTYPE"],
            },
        )
        victim.kill()


def filled(source: str, words: dict[str, object]) -> str:
    """Only our own fields: the programs are full of braces."""
    for word, value in words.items():
        source = source.replace("{" + word + "!r}", repr(value))
        source = source.replace("{" + word + "}", str(value))
    return source


def processes_within() -> set[int]:
    """All processes of this machine that are some sandbox's."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"/box/main.py" in command:
            found.add(int(folder.name))
    return found


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_contained(name: str, host: SimpleNamespace):
    attack = ATTACKS[name]
    limits = dataclasses.replace(LIMITS, wall_seconds=attack.wall_seconds)
    before, started = processes_within(), time.monotonic()
    result = run_python(filled(attack.source, host.words), limits=limits)
    took = time.monotonic() - started
    said = (result.stdout + result.stderr).decode(errors="replace")
    assert result.status in attack.statuses, said[-2000:]
    assert "ESCAPED" not in said, said
    assert SECRET not in said
    assert took < limits.wall_seconds + SLACK_SECONDS
    assert len(result.stdout) + len(result.stderr) <= limits.output
    assert result.memory < 2 * limits.memory
    # Other tests have sandboxes, too: what is ours is what stays.
    left, deadline = processes_within() - before, time.monotonic() + 30
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left &= processes_within()
    assert not left, "it outlived its sandbox"
    assert host.victim.poll() is None
    for server in host.servers:
        with pytest.raises(BlockingIOError):
            server.accept()


def test_there_are_as_many_attacks_as_promised():
    assert len(ATTACKS) >= 25


def test_the_host_stays_responsive(host: SimpleNamespace):
    """While every slot is taken by a bomb, other work goes on at an ordinary pace."""
    bombs = ("fork_bomb", "memory_of_many", "busy_loops", "fork_bomb_of_daemons")

    def attack(name: str) -> None:
        run_python(filled(ATTACKS[name].source, host.words), limits=LIMITS)

    delays = []
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(attack, name) for name in bombs]
        while not all(run.done() for run in runs):
            started = time.monotonic()
            subprocess.run(["/bin/true"], check=True)
            delays.append(time.monotonic() - started)
            time.sleep(0.02)
        for run in runs:
            run.result()
    assert sorted(delays)[len(delays) // 2] < 0.5
    assert max(delays) < 5.0
