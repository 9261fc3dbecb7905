"""Runs functions on untrusted input in processes of their own, each call with a time limit.

A call that raises, hangs, eats memory or takes its process down costs only its own result, and the
result says what happened. The processes are started afresh (spawn): the caller's may hold threads
of jax, which forking would break, and none of its memory is there for a verifier to look at.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

from zaya_jax.errors import UserError

Failure = Literal["raised", "timeout", "died", "unstarted"]

START_SECONDS = 120.0
"""A worker has this long to import its function: symbolic algebra on a busy machine takes some."""
LONGEST_WORD = 300
"""Characters of an exception's message that are kept."""


@dataclass(frozen=True)
class Outcome:
    """What became of a call.

    Attributes:
      value: what it returned; None if it failed.
      failure: None, or `raised`, `timeout`, `died` (its process ended), `unstarted` (no process
        could import the function).
      message: more about the failure, for people.
      seconds: that it took.
    """

    value: Any = None
    failure: Failure | None = None
    message: str = ""
    seconds: float = 0.0


class Workers:
    """Processes that call one function; started when they are first needed, and again when killed.

    A context manager: leaving it ends the processes.
    """

    def __init__(
        self,
        function: str,
        *,
        processes: int = 2,
        seconds: float = 10.0,
        memory_bytes: int | None = 4 << 30,
    ):
        """Args:
          function: `module:name` of a function of one argument; the argument and what it returns
            are pickled.
          processes: that run side by side.
          seconds: that a call may take.
          memory_bytes: address space of a process (where the system can limit it); None for all.

        Raises:
          UserError: no process, or no time.
        """
        if processes < 1:
            raise UserError(f"processes = {processes}: expected at least 1")
        if not seconds > 0:
            raise UserError(f"seconds = {seconds}: expected more than 0")
        self._function, self._seconds, self._memory = function, seconds, memory_bytes
        self._count = processes
        self._workers: list[_Worker] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes; a later call starts new ones."""
        for worker in self._workers:
            worker.kill()
        self._workers.clear()

    def map(self, arguments: Sequence[Any]) -> list[Outcome]:
        """Calls the function with each argument; the outcomes in their order. Raises nothing that
        the function does."""
        outcomes: list[Outcome | None] = [None] * len(arguments)
        waiting = deque(range(len(arguments)))
        while len(self._workers) < min(self._count, len(arguments)):
            self._workers.append(_Worker(self._function, self._memory))
        while waiting or any(worker.task is not None for worker in self._workers):
            for worker in self._workers:
                if worker.ready and worker.task is None and waiting:
                    task = waiting.popleft()
                    if (failed := worker.give(task, arguments[task])) is not None:
                        outcomes[task] = failed
            self._collect(outcomes, waiting)
        return [outcome or Outcome(failure="died") for outcome in outcomes]

    def _collect(self, outcomes: list[Outcome | None], waiting: deque[int]) -> None:
        """Waits for the next result, death or deadline, and deals with all that are there."""
        now, unstarted = time.monotonic(), None
        nearest = min(worker.deadline(self._seconds) for worker in self._workers)
        wait([worker.pipe for worker in self._workers], max(0.0, min(nearest - now, 1.0)))
        for place, worker in enumerate(self._workers):
            result = worker.result(self._seconds)
            if result is None:
                continue
            if worker.task is not None:
                outcomes[worker.task] = result
                worker.task = None
            if result.failure in ("timeout", "died", "unstarted"):
                worker.kill()
                if not worker.ready:
                    unstarted = result
                elif waiting:
                    self._workers[place] = _Worker(self._function, self._memory)
        self._workers = [worker for worker in self._workers if worker.alive]
        if waiting and not self._workers:
            if unstarted is None:
                self._workers.append(_Worker(self._function, self._memory))
            while unstarted is not None and waiting:  # another would not start either
                outcomes[waiting.popleft()] = unstarted


class _Worker:
    """One process and its end of the pipe."""

    def __init__(self, function: str, memory_bytes: int | None):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, function, memory_bytes), daemon=True
        )
        self.process.start()
        theirs.close()
        self.since = time.monotonic()
        self.ready = False
        self.alive = True
        self.task: int | None = None

    def give(self, task: int, argument: Any) -> Outcome | None:
        """Sends a call; an outcome if that fails already (an argument that cannot be pickled)."""
        try:
            self.pipe.send(argument)
        except OSError:
            self.task, self.since = task, time.monotonic()  # found dead by `result`
            return None
        except Exception as error:
            return Outcome(failure="raised", message=_words(error))
        self.task, self.since = task, time.monotonic()
        return None

    def deadline(self, seconds: float) -> float:
        if not self.ready:
            return self.since + START_SECONDS
        return self.since + seconds if self.task is not None else float("inf")

    def result(self, seconds: float) -> Outcome | None:
        """What came of the call, or of the start; None while there is nothing."""
        took = time.monotonic() - self.since
        try:
            if self.pipe.poll():
                message = self.pipe.recv()
                if message == _READY:
                    self.ready = True
                    return None
                failure, value, words = message
                return Outcome(value, failure, words, took)
        except (EOFError, OSError):
            return Outcome(failure="died", message=self._last_words(), seconds=took)
        except Exception as error:  # what it returned cannot be read here
            return Outcome(failure="raised", message=_words(error), seconds=took)
        if time.monotonic() > self.deadline(seconds):
            if self.ready:
                return Outcome(failure="timeout", message=f"more than {seconds:g} s", seconds=took)
            words = f"no start within {START_SECONDS:g} s"
            return Outcome(failure="unstarted", message=words, seconds=took)
        return None

    def kill(self) -> None:
        self.alive = False
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def _last_words(self) -> str:
        self.process.join(timeout=1.0)
        return f"its process ended with status {self.process.exitcode}"


_READY = "ready"


def _serve(pipe: Connection, function: str, memory_bytes: int | None) -> None:
    """A worker's life: imports the function, then answers calls until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's to deal with
    sys.stdout = sys.stderr = open(os.devnull, "w")  # what a verifier prints is no message of ours
    os.environ["JAX_PLATFORMS"] = "cpu"  # should a verifier import jax, it takes no accelerator
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    try:
        _limit_memory(memory_bytes)
        module, _, name = function.partition(":")
        call = getattr(importlib.import_module(module), name)
        pipe.send(_READY)
    except BaseException as error:
        pipe.send(("unstarted", None, _words(error)))
        return
    while True:
        try:
            argument = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple = (None, call(argument), "")
        except BaseException as error:  # SystemExit too: a verifier may not end the worker
            answer = ("raised", None, _words(error))
        try:
            pipe.send(answer)
        except (BrokenPipeError, ConnectionError):
            return
        except Exception as error:  # what it returned cannot be pickled
            pipe.send(("raised", None, _words(error)))


def _limit_memory(memory_bytes: int | None) -> None:
    if memory_bytes is None:
        return
    try:
        import resource
    except ImportError:  # not a Unix
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        memory_bytes = min(memory_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, hard))


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:LONGEST_WORD]
    except Exception:
        return type(error).__name__
