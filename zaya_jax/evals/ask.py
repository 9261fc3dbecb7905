"""Asks a server for the answers that are still missing, many at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from zaya_jax.errors import UserError
from zaya_jax.evals import connection, record
from zaya_jax.evals.client import Answer, Refused, Sampling, Server, ServerError
from zaya_jax.evals.record import Answers
from zaya_jax.rl.rewards.interface import Task

REFUSED = "refused"
"""How an answer ended that the server would not give."""


def collect(
    server: Server,
    tasks: Sequence[Task],
    path: Path,
    *,
    samples: int,
    sampling: Sampling,
    seed: int = 0,
    concurrency: int = 8,
    show: Callable[[int, int], None] | None = None,
) -> Answers:
    """All answers to some tasks; those that a file has already are not asked for again.

    Sample i of any task is asked for with seed + i. What the server refuses is kept, too, as an
    answer that says why, once any other was answered.

    Args:
      server: whom to ask.
      tasks: what to ask.
      path: the file; every answer is in it as soon as it is there.
      samples: of each task.
      sampling: how answers are drawn.
      seed: of the first sample.
      concurrency: requests at a time.
      show: is told how many answers there are, of how many.

    Raises:
      UserError: the server failed for good, or refused all that it was ever asked; what was
        answered before is kept.
    """
    names = {task.name for task in tasks}
    stop = threading.Event()
    with record.Record(path) as file:  # which first cuts off half a line, if there is one
        there = record.read(path, names)
        missing = [
            (task, sample)
            for sample in range(samples)
            for task in tasks
            if sample not in there.get(task.name, {})
        ]
        kept = _Kept(file, there, samples * len(tasks), len(missing), show)

        def one(task: Task, sample: int) -> None:
            if stop.is_set():
                return
            try:
                answer = server.ask(task.prompt, sampling, seed + sample, stop)
            except Refused as error:
                answer = Answer("", REFUSED, None, 0.0, str(error))
            except ServerError as error:
                if stop.is_set():  # it was not asked to the end
                    return
                stop.set()
                raise UserError(
                    f"{server.url} failed on task {task.name!r}: {error}. {kept.done} of "
                    f"{kept.total} answers are kept; the same command goes on"
                ) from None
            kept.add(task.name, sample, answer)

        with ThreadPoolExecutor(concurrency) as pool:
            futures = [pool.submit(one, task, sample) for task, sample in missing]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            except KeyboardInterrupt:  # an answer may take hours: it is asked for again
                stop.set()
                while wait(futures, timeout=0.1).not_done:  # some are only being connected
                    connection.hang_up()
                raise
            finally:  # after a failure what is under way ends, what waits does not begin
                stop.set()
            for future in futures:
                future.result()
    kept.check(server.url)
    return {
        name: {sample: answer for sample, answer in found.items() if sample < samples}
        for name, found in record.read(path, names).items()
    }


class _Kept:
    """Answers on their way into the file: refusals wait until anything at all was answered.

    Attributes:
      total: answers that are wanted.
      done: that are in the file.
    """

    def __init__(
        self,
        file: record.Record,
        there: Answers,
        total: int,
        missing: int,
        show: Callable[[int, int], None] | None,
    ):
        self.total, self.done = total, total - missing
        self._file, self._show, self._lock = file, show, threading.Lock()
        self._answered = any(a.refused is None for each in there.values() for a in each.values())
        self._waiting: list[tuple[str, int, Answer]] = []

    def add(self, task: str, sample: int, answer: Answer) -> None:
        """From any thread."""
        with self._lock:
            self._waiting.append((task, sample, answer))
            self._answered = self._answered or answer.refused is None
            while self._answered and self._waiting:
                self._file.add(*self._waiting.pop(0))
                self.done += 1
                if self._show:
                    self._show(self.done, self.total)

    def check(self, url: str) -> None:
        """Raises UserError if nothing was answered: the fault is hardly the tasks'."""
        if self._waiting:
            task, _, answer = self._waiting[0]
            raise UserError(
                f"{url} refuses all {len(self._waiting)} that it was asked, such as task {task!r}: "
                f"{answer.refused}. Nothing of that is kept: see whether it takes these options"
            )
