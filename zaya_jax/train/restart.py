"""Processes on this machine, started together, and started again when one of them was lost.

The launcher does no work of its own and never touches a device. It waits for the processes of a
run; when one ends otherwise than it should, it ends the others, which would wait for it in vain,
and starts all of them again. They go on from the last checkpoint, as any start does.

What is not mended by trying again ends the run: a mistake of the user's (status 2), and a signal to
the launcher, which it passes on.
"""

from __future__ import annotations

import ctypes
import dataclasses
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from zaya_jax.errors import UserError
from zaya_jax.train import interrupt

WRONG_USE = 2
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE = 10.0
"""Seconds for the others to say what they have to, once one has ended."""
_PR_SET_PDEATHSIG = 1


@dataclasses.dataclass(frozen=True)
class Launch:
    """What to start.

    Attributes:
      command: of a process, without what tells them apart.
      local: how many are started here.
      coordinator: HOST:PORT; None for this machine and a free port, if all are here.
      count: of all processes, those on other machines among them.
      first: number of the first one here.
      devices: for each, the value of `--local_devices`; "" for all that it sees.
      restarts: how often at most.
    """

    command: Sequence[str]
    local: int = 1
    coordinator: str | None = None
    count: int = 1
    first: int = 0
    devices: Sequence[str] = ()
    restarts: int = 0

    def commands(self) -> list[list[str]]:
        """Of a start: one for each process here. Options given twice count as given last."""
        own = [*self.command, "--spawn=0", "--restarts=0"]
        if self.count == 1:
            return [own]
        meet = self.coordinator or f"localhost:{free_port()}"
        return [
            [
                *own,
                f"--coordinator={meet}",
                f"--processes={self.count}",
                f"--process_id={self.first + i}",
                *([f"--local_devices={self.devices[i]}"] if self.devices else []),
            ]
            for i in range(self.local)
        ]


def run(launch: Launch, tell: Callable[[str], None]) -> int:
    """Starts, waits, and starts again; returns the exit status of the run.

    Args:
      launch: what.
      tell: gets a line when something happened.
    """
    stopped: list[int] = []
    times: list[float] = []
    running: list[subprocess.Popen] = []

    def pass_on(number: int) -> None:
        for process in running:
            process.send_signal(number)

    def stop(number: int, frame: object) -> None:
        stopped.append(number)
        times.append(time.monotonic())
        pass_on(number)

    def overdue() -> bool:
        """Whether somebody asked a second time, and was not heard: a process may be stuck where it
        hears nothing."""
        again = interrupt.repeated(times)
        return again is not None and time.monotonic() > again + _GRACE

    heard = [number for number in _STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heard}  # not what nohup ignores
    try:
        for attempt in range(launch.restarts + 1):
            running[:] = [_start(command) for command in launch.commands()]
            if stopped:  # between two starts
                pass_on(stopped[-1])
            ended = _wait(running, overdue)
            status, why = _verdict(ended, launch.first)
            if stopped or status in (0, WRONG_USE, *(128 + number for number in _STOPS)):
                return 128 - status if status < 0 else status
            if attempt == launch.restarts:
                limit = f" (--restarts={launch.restarts})" if launch.restarts else ""
                tell(f"{why}; it is not started again{limit}")
                return status if status > 0 else 128 - status
            tell(
                f"{why}; starting again from the last checkpoint, {attempt + 1} of at most "
                f"{launch.restarts} times"
            )
        raise AssertionError
    finally:
        _kill(running)
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(command: Sequence[str]) -> subprocess.Popen:
    # In a group of its own: Ctrl-C of a terminal comes to the launcher, which passes it on once.
    return subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent)


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """In a process that was just started: is sent this signal when who started it dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _wait(
    running: list[subprocess.Popen], overdue: Callable[[], bool]
) -> list[tuple[int, int]]:
    """Until all have ended: their numbers here with their statuses, in the order in which they did.

    When one has failed, the others have a little time.

    Args:
      overdue: whether they are to be ended now.
    """
    ended: dict[int, int] = {}
    deadline = None
    while len(ended) < len(running):
        for number, process in enumerate(running):
            status = process.poll()
            if status is not None and number not in ended:
                ended[number] = status
                if status and deadline is None:
                    deadline = time.monotonic() + _GRACE
        if overdue() or (deadline is not None and time.monotonic() > deadline):
            _kill(running)
        time.sleep(0.05)
    return list(ended.items())


def _kill(running: list[subprocess.Popen]) -> None:
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()


def _verdict(ended: list[tuple[int, int]], first: int) -> tuple[int, str]:
    """The status that counts, and what it means: a mistake's, else that of the first to fail."""
    failed = [(number, status) for number, status in ended if status]
    if not failed:
        return 0, ""
    number, status = next((one for one in failed if one[1] == WRONG_USE), failed[0])
    how = f"ended with status {status}"
    if status < 0:
        how = f"was ended by {signal.Signals(-status).name}"
    return status, f"process {first + number} {how}"


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def command_of(verb: str, arguments: Sequence[str]) -> list[str]:
    """How this very command is started again.

    Raises:
      UserError: there is no `launch.py` beside the package.
    """
    entry = Path(__file__).parents[2] / "launch.py"
    if not entry.is_file():
        raise UserError(f"{entry} is not there: --spawn and --restarts start it")
    return [sys.executable, str(entry), verb, *arguments]
