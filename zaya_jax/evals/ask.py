"""Asks a server for the answers that are still missing, many at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path

from zaya_jax.errors import UserError
from zaya_jax.evals import record
from zaya_jax.evals.client import Sampling, Server, ServerError
from zaya_jax.evals.record import Answers
from zaya_jax.rl.rewards.interface import Task


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

    Sample i of any task is asked for with seed + i.

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
      UserError: the server failed for good; what was answered before is kept.
    """
    names = {task.name for task in tasks}
    lock, stop = threading.Lock(), threading.Event()
    with record.Record(path) as file:  # which first cuts off half a line, if there is one
        there = record.read(path, names)
        missing = [
            (task, sample)
            for sample in range(samples)
            for task in tasks
            if sample not in there.get(task.name, {})
        ]
        total = samples * len(tasks)
        done = total - len(missing)

        def one(task: Task, sample: int) -> None:
            nonlocal done
            if stop.is_set():
                return
            try:
                answer = server.ask(task.prompt, sampling, seed + sample)
            except ServerError as error:
                stop.set()
                raise UserError(
                    f"{server.url} failed on task {task.name!r}: {error}. {done} of {total} "
                    "answers are kept; the same command goes on"
                ) from None
            with lock:
                file.add(task.name, sample, answer)
                done += 1
                if show:
                    show(done, total)

        with ThreadPoolExecutor(concurrency) as pool:
            futures = [pool.submit(one, task, sample) for task, sample in missing]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # after an interrupt, too: what is under way ends, what waits does not begin
                stop.set()
            for future in futures:
                future.result()
    kept = record.read(path, names)
    return {
        name: {sample: answer for sample, answer in found.items() if sample < samples}
        for name, found in kept.items()
    }
