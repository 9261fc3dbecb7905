"""The meeting of all processes, and a connection from each to process 0 ever after.

Before jax starts, process 0 calls the roll at the coordinator's address. When jax itself waits for
processes in vain it ends with a C++ stack that names none of them; here, everybody is told who is
missing, or who says what cannot be. Once all are there the port is jax's.

The connections stay, and nothing is said over them. When a process dies, whatever it dies of, its
machine closes its connection: the other end hears of that at once. What closes no connection, as
a machine without power or a cable pulled, is left to the heartbeats of `zaya_jax.parallel.watch`.
"""

from __future__ import annotations

import errno
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from zaya_jax.cluster import Member
from zaya_jax.errors import AGAIN, UserError

_GOODBYE = b"."
_HELLO = 256
"""Bytes of a line at the most."""
_TRY, _SLICE = 0.2, 1.0
"""Seconds between two attempts to connect, and of a wait between which signals are answered."""
_POLITE = 10.0
"""Seconds for somebody who has connected to say who it is, and for a last word to arrive."""


class NotMet(UserError):
    """Some have not come in time: a machine may be slow to start, or be started again."""

    status = AGAIN


_TOLD = {"mistake": UserError, "missing": NotMet}
"""What those who have come are told instead of "go"."""


class Lifeline:
    """This process's connections: in process 0 to each other one, in the others to process 0.

    Args:
      sockets: by the number of the process at the other end.
    """

    def __init__(self, sockets: dict[int, socket.socket]):
        self._sockets = sockets
        self._closing = False

    def watch(self, broken: Callable[[int], Any]) -> None:
        """From now on calls `broken`, in a thread, with who has gone without a goodbye."""
        threading.Thread(target=self._watch, args=[broken], daemon=True).start()

    def _watch(self, broken: Callable[[int], Any]) -> None:
        with selectors.DefaultSelector() as selector, suppress(OSError, ValueError):
            for index, found in self._sockets.items():
                found.setblocking(False)
                selector.register(found, selectors.EVENT_READ, index)
            while not self._closing and selector.get_map():
                for key, _ in selector.select(timeout=_SLICE):
                    selector.unregister(key.fileobj)
                    if _gone(self._sockets[key.data]) and not self._closing:
                        broken(key.data)

    def close(self) -> None:
        """Says goodbye."""
        self._closing = True
        for found in self._sockets.values():
            with suppress(OSError):
                found.sendall(_GOODBYE)
            found.close()


def meet(member: Member, seconds: float) -> Lifeline:
    """Waits until all processes of a run are there.

    Raises:
      NotMet: they are not in time; in all those that are there.
      UserError: they say what contradicts, likewise; or process 0 cannot listen.
    """
    where = f"process {member.index} of {member.count} ({member.found})"
    deadline = time.monotonic() + seconds
    if member.index:
        return _come(member, deadline, seconds, where)
    with _listen(member, where) as listener:
        return _call(listener, member, deadline, seconds, where)


def _call(
    listener: socket.socket, member: Member, deadline: float, seconds: float, where: str
) -> Lifeline:
    """In process 0."""
    listener.settimeout(_SLICE)
    there: dict[int, socket.socket] = {}
    while len(there) < member.count - 1:
        mistake, kind = None, "mistake"
        if time.monotonic() > deadline:
            missing = [str(i) for i in range(1, member.count) if i not in there]
            kind, mistake = "missing", (
                f"process {', '.join(missing)} of {member.count} did not come to "
                f"{member.coordinator} within {seconds:g} s. Look at what they say; all processes "
                "are to be started with the same coordinator and number of processes"
            )
        else:
            with suppress(TimeoutError):
                mistake = _admit(listener.accept()[0], member.count, there)
        if mistake is not None:
            _tell(there, json.dumps({kind: mistake}))
            raise _TOLD[kind](f"{where}: {mistake}")
    _tell(there, json.dumps({"go": member.count}))
    return Lifeline(there)


def _admit(found: socket.socket, count: int, there: dict[int, socket.socket]) -> str | None:
    """Hears who has connected, and takes it among those who are there; says what contradicts."""
    found.settimeout(_POLITE)
    try:
        said = json.loads(_line(found))
        index, theirs = int(said["process"]), int(said["of"])
    except (OSError, ValueError, KeyError, TypeError):  # a stranger, or one that has died
        found.close()
        return None
    found.setblocking(False)
    old = there.get(index)
    there[index if old is None else -1] = found  # whoever it is, it is told
    if theirs != count:
        return f"process {index} was started as one of {theirs} processes, process 0 of {count}"
    if not 0 < index < count:
        return f"somebody came as process {index} of {count}"
    if old is not None and not _gone(old):
        return f"two processes were started as process {index}"
    if old is not None:  # which has died, and was started again
        there[index] = there.pop(-1)
    return None


def _come(member: Member, deadline: float, seconds: float, where: str) -> Lifeline:
    """In the others."""
    host, port = member.coordinator.rsplit(":", 1)
    why: object = ""
    while time.monotonic() < deadline:
        try:
            found = socket.create_connection((host.strip("[]"), int(port)), timeout=2)
        except (OSError, OverflowError) as error:
            why = error
            time.sleep(_TRY)
            continue
        said = _ask(found, member, deadline)
        if said is None:
            why = "somebody listens there who does not answer as process 0 would"
            found.close()
            time.sleep(_TRY)
        elif "go" in said:
            return Lifeline({0: found})
        else:
            kind = "mistake" if "mistake" in said else "missing"
            raise _TOLD[kind](f"{where}: {said[kind]}")
    # A name that nobody knows, all this time, is a wrong one; whoever is known may come yet.
    unknown = isinstance(why, socket.gaierror)
    raise (UserError if unknown else NotMet)(
        f"{where}: the coordinator {member.coordinator} was not reached in {seconds:g} s ({why}). "
        f"Check that process 0 runs on {host} and has not ended with an error, that this machine "
        f"knows the name {host} and may connect to port {port} there, and that all processes were "
        "given the same address"
    )


def _ask(found: socket.socket, member: Member, deadline: float) -> dict[str, Any] | None:
    """Says who this is, and waits to be told that all are there; None if nobody does so."""
    hello = json.dumps({"process": member.index, "of": member.count})
    try:
        found.sendall(f"{hello}\n".encode())
        found.settimeout(max(deadline - time.monotonic(), 0) + _POLITE)
        said = json.loads(_line(found))
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) and {"go", *_TOLD} & said.keys() else None


def _line(found: socket.socket) -> bytes:
    """A line, byte by byte: what follows is not ours to take."""
    text = b""
    while not text.endswith(b"\n"):
        byte = found.recv(1)
        if not byte or len(text) >= 4 * _HELLO:
            raise ValueError("no line")
        text += byte
    return text


def _tell(there: dict[int, socket.socket], text: str) -> None:
    for found in there.values():
        with suppress(OSError):
            found.sendall(f"{text}\n".encode())


def _gone(found: socket.socket) -> bool:
    """Whether a connection, one that does not block, has ended without a goodbye."""
    try:
        return not found.recv(1)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _listen(member: Member, where: str) -> socket.socket:
    """A socket on the coordinator's port, of IPv6 and IPv4 where there are both.

    Raises:
      UserError: another program has the port, or it is none.
    """
    port = int(member.coordinator.rsplit(":", 1)[1])
    for family in (socket.AF_INET6, socket.AF_INET):
        dual = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        try:
            return socket.create_server(
                ("", port), family=family, dualstack_ipv6=dual, backlog=1024
            )
        except (OSError, OverflowError) as error:
            taken = (errno.EADDRINUSE, errno.EACCES)
            if isinstance(error, OSError) and error.errno not in taken:
                continue  # no such protocol here
            raise UserError(
                f"{where}: cannot listen on port {port} of {member.coordinator} ({error}): another "
                "run may be using it; give all processes another port by --coordinator"
            ) from None
    raise UserError(f"{where}: this machine has no network to listen on")
