"""The processes of a run, and the little that they say to each other.

All run the same program on the same config, and take part in the same collectives in the same
order. What decides how a run goes on must therefore be the same for all of them: what a clock, a
signal or a file says, process 0 says for all (`share`), or all say and hear (`gather`). That goes
through the key-value store of `jax.distributed`, not over the devices, so that it needs no program
and disturbs no collective.

`Alone` is the only process of a run, for which there is nothing to say.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from zaya_jax.cluster import Member
from zaya_jax.errors import UserError
from zaya_jax.parallel.lifeline import meet
from zaya_jax.parallel.watch import LOST, Watch, write

CONNECT_SECONDS, LOST_SECONDS, HUNG_SECONDS = 300.0, 60.0, 1800.0
"""Defaults: for all to come, for one to be silent, and for a step, an evaluation's batch or a save.
A process that is alone is not watched, unless asked for."""
_SLICE = 5.0
"""Seconds that Python waits in one call: signals are answered in between."""
_OLD = 64
"""A value is deleted when so many newer ones were shared under its name. By then all have read it:
none of them is further ahead than the collectives, and an exchange, allow."""
_INTERRUPTED = 130


class FromFirst(UserError):
    """A mistake that process 0 has found, too, or alone, and that it tells people."""


class FirstFailed(RuntimeError):
    """Process 0 failed at what the others wait for."""


class Alone:
    """The only process of a run.

    Attributes:
      index, count: which process this is, and of how many.
    """

    index, count = 0, 1

    def __init__(self, watch: Watch | None = None):
        self._watch = watch

    @property
    def leads(self) -> bool:
        """Whether this is process 0: the one that writes files and talks to people."""
        return self.index == 0

    def share(self, make: Callable[[], Any], name: str = "share") -> Any:
        """What process 0 makes, in all processes, once it has made it.

        All call this in the same order of calls with the same `name`.

        Args:
          make: called in process 0 only; returns what JSON can hold.
          name: of a sequence of such calls. A thread beside has its own.

        Raises:
          UserError: what `make` raises; in the others `FromFirst`.
          FirstFailed: `make` raised something else in process 0.
        """
        return make()

    def gather(self, text: str, name: str = "gather") -> list[str]:
        """What each of the processes says, in their order, in all of them; as `share` else."""
        return [text]

    def mistake(self, message: str) -> UserError:
        """A mistake that all processes have found, to be raised in all: process 0 prints it."""
        return (UserError if self.leads else FromFirst)(message)

    def asked(self, heard: int | None) -> int | None:
        """Between two steps: the signal that some process has heard, the same answer in all.

        It tells the watch, too, that something has moved.

        Args:
          heard: the number of a signal that this process has been sent, if it has.
        """
        if self._watch is not None:
            self._watch.beat()
        return heard

    @contextmanager
    def guard(self) -> Iterator[None]:
        """What fails inside of the block is told to the others, which are waiting for this one."""
        yield


ALONE = Alone()


class Group(Alone):
    """One process among several.

    Args:
      client: of the key-value store.
      index, count: see `Alone`.
      watch: ends this process when another one is lost.
    """

    def __init__(self, client: Any, index: int, count: int, watch: Watch):
        super().__init__(watch)
        self._client, self.index, self.count = client, index, count
        self._watch: Watch = watch
        self._numbers: Counter[str] = Counter()
        self._numbering = threading.Lock()
        self._asked = self._failed = False

    def share(self, make, name="share"):
        """See `Alone`."""
        key = self._key(name)
        if self.leads:
            try:
                value = make()
            except BaseException as error:
                kind = "mistake" if isinstance(error, UserError) else "failure"
                self._client.key_value_set(key, json.dumps({kind: str(error)}))
                raise
            text = json.dumps({"value": value})
            self._client.key_value_set(key, text)
        else:
            text = self._wait(key)
        found = json.loads(text)  # in process 0, too: the same in all
        if "mistake" in found:
            raise FromFirst(found["mistake"])
        if "failure" in found:
            raise FirstFailed(found["failure"])
        return found["value"]

    def gather(self, text, name="gather"):
        """See `Alone`."""
        key = self._key(name)
        self._client.key_value_set(f"{key}/{self.index}", text)
        return [self._wait(f"{key}/{i}") for i in range(self.count)]

    def asked(self, heard):
        """See `Alone`."""
        self._watch.beat()
        if heard is not None and not self._asked:
            self._asked = True
            if not self.leads:
                self._client.key_value_set(f"zaya/heard/{self.index}", str(heard))

        def first() -> int | None:
            if heard is not None:
                return heard
            found = self._client.key_value_dir_get("zaya/heard/")
            return int(found[0][1]) if found else None

        return self.share(first, "asked")

    @contextmanager
    def guard(self):
        """See `Alone`. It prints the error, for what is done on the way out may not end."""
        try:
            yield
        except BaseException as error:
            if not self._failed:
                self._failed = True
                self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        import jax

        who = f"process {self.index} of {self.count}"
        if isinstance(error, FromFirst):  # process 0 tells
            write(f"{who} ends: process 0 has found a mistake, and says which\n")
            return
        if isinstance(error, FirstFailed):
            write(f"{who} ends: process 0 failed: {_first_line(error)}\n")
            return
        full = "RESOURCE_EXHAUSTED" in str(error)
        if isinstance(error, jax.errors.JaxRuntimeError) and not full:
            self._watch.wait_for_word()
        if isinstance(error, UserError):
            write(f"error: {error}" + (f" ({who})" if self.index else "") + "\n")
        elif isinstance(error, SystemExit | KeyboardInterrupt):
            write(f"{who} was asked to stop before it could\n")
        else:
            write(f"{who}:\n" + "".join(traceback.format_exception(error)))
        mistake = isinstance(error, UserError)
        kind = "" if mistake else f"{type(error).__name__}: "
        status = error.status if isinstance(error, UserError) else LOST
        self._watch.tell(f"{who} failed: {kind}{_first_line(error)}", status)

    def _key(self, name: str) -> str:
        """The key of the next exchange of a name. Process 0 forgets what is old."""
        with self._numbering:
            self._numbers[name] = number = self._numbers[name] + 1
        if self.leads and number > _OLD:
            with suppress(Exception):
                self._client.key_value_delete(f"zaya/{name}/{number - _OLD}")
        return f"zaya/{name}/{number}"

    def _wait(self, key: str) -> str:
        """A value, as soon as somebody has set it. If nobody will, the watch ends this process."""
        while True:
            try:
                return self._client.blocking_key_value_get(key, int(_SLICE * 1000))
            except Exception as error:  # jax has no class of its own for this
                if "DEADLINE_EXCEEDED" not in str(error):
                    self._watch.wait_for_word()
                    raise


@contextmanager
def session(
    member: Member | None,
    connect_seconds: float = CONNECT_SECONDS,
    lost_seconds: float = LOST_SECONDS,
    hung_seconds: float | None = None,
) -> Iterator[Alone]:
    """Takes part in a run inside the block, from the meeting of all processes to their parting.

    With several processes an error in the block ends this process, after it was printed: to leave
    by the usual way jax would wait for all others.

    Args:
      member: from `cluster.find`; None for a process that is alone.
      connect_seconds: until all have come.
      lost_seconds: of silence until a process is taken for lost.
      hung_seconds: without a step until this process is taken for hung; 0 for never, None for
        `HUNG_SECONDS` among several.

    Raises:
      UserError: the others could not be met; the message says what to check.
    """
    if member is None:
        watch = Watch(None, 0, 1, lost_seconds, hung_seconds) if hung_seconds else None
        try:
            yield Alone(watch)
        finally:
            if watch is not None:
                watch.close()
        return
    lifeline = meet(member, connect_seconds)
    client = connect(member, lost_seconds)
    hung = HUNG_SECONDS if hung_seconds is None else hung_seconds
    watch = Watch(client, member.index, member.count, lost_seconds, hung)
    lifeline.watch(watch.broken)
    group = Group(client, member.index, member.count, watch)
    try:
        with group.guard():
            yield group
        group.gather("", "end")
    except BaseException as error:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(_status(error))
    lifeline.close()
    watch.close()
    import jax

    jax.distributed.shutdown()


def connect(member: Member, lost_seconds: float) -> Any:
    """Gives jax the devices of all processes, which have met; returns the store's client."""
    import jax
    from jax._src import distributed  # the store has no public name; Orbax takes it from here, too

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its own handler of SIGTERM would take the place of ours (zaya_jax.train.interrupt).
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        member.coordinator,
        member.count,
        member.index,
        local_device_ids=member.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=round(lost_seconds + 60),
        # `Watch` is to be the first to notice, for it says which process it was.
        heartbeat_timeout_seconds=round(4 * lost_seconds + 60),
        shutdown_timeout_seconds=round(lost_seconds),
    )
    return distributed.global_state.client


def _status(error: BaseException) -> int:
    """The exit status of a process that ends with an error, as the command line has it."""
    if isinstance(error, UserError):
        return error.status
    if isinstance(error, FirstFailed):
        return LOST
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    return 1


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
