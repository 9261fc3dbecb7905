"""Rollout workers: one in the trainer's process, or some in processes or Ray actors of their own.

All are told to finish so many groups, and their groups are taken in the order of the workers; so
what is sampled by which weights depends on no clock, however fast a worker is. One that dies takes
its own unfinished rollouts along, and another begins behind them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

import jax

from zaya_jax.config import Experiment
from zaya_jax.errors import UserError
from zaya_jax.infer.engine import Request, Result
from zaya_jax.model.functional import Biases, Params
from zaya_jax.rl.generation import Finished
from zaya_jax.rl.graded import Graded, is_graded
from zaya_jax.rl.host import Host, Opened, Place
from zaya_jax.rl.remote import Died, Process, RayActor, Remote, join_ray

RESTARTS = 3
"""Times that a worker may be started anew in a run."""
ROUNDS = 4
"""A batch is asked for in about so many portions: small ones wait for the slowest more often, large
ones overshoot."""


class Rollouts(Protocol):
    """Where rollouts come from.

    Attributes:
      numbers: of the next tasks, by worker: with the weights all that there is to go on from, once
        nothing is under way.
      lost: rollouts that died with their workers.
      graded: the curriculum of graded tasks, if some are; with one worker, here.
    """

    @property
    def numbers(self) -> list[int]: ...

    @property
    def lost(self) -> int: ...

    @property
    def graded(self) -> Graded | None: ...

    def step(self) -> list[Finished]:
        """Generates for a while; the groups that got finished, in order."""

    def drain(self) -> list[Finished]:
        """Asks nothing new until all that is under way has ended."""

    def swap(self, params: Params, biases: Biases, updates: int) -> None:
        """Goes on with other weights, behind which are so many updates."""

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Completes requests, with nothing else under way."""

    def close(self) -> None:
        """Ends it."""


class Inline:
    """A host in this process, on a device of its own if there are several."""

    lost = 0

    def __init__(
        self,
        experiment: Experiment,
        opened: Opened,
        numbers: Sequence[int],
        params: Params,
        biases: Biases,
        updates: int,
        device: jax.Device,
    ):
        """Args: see `Pool`; opened: what the stage is about; device: where the host computes."""
        begin = max(numbers, default=0)  # of several workers: none asks a task again
        self._host = Host(experiment, opened, Place(0, 1, begin, updates), params, biases, device)
        self.step, self.drain = partial(self._host.run, 0), self._host.drain
        self.swap, self.generate = self._host.swap, self._host.generate

    @property
    def numbers(self) -> list[int]:
        return [self._host.number]

    @property
    def graded(self) -> Graded | None:
        return self._host.questions.graded

    def close(self) -> None:
        """There is nothing to end."""


class Pool:
    """Hosts as if they were one. They have no curriculum: none of them would hear of the others.

    Attributes:
      lost: rollouts that died with their workers.
    """

    graded = None

    def __init__(
        self,
        experiment: Experiment,
        numbers: Sequence[int],
        params: Params,
        biases: Biases,
        updates: int,
        say: Callable[[str], None],
    ):
        """Args:
          experiment: the stage; `rl.rollout` and `rl.workers` say what to start.
          numbers: of the next tasks, by worker, as `numbers` gave them before; of another number of
            workers too.
          params, biases, updates: the policy.
          say: tells a person something.

        Raises:
          UserError: no Ray where it is asked for; what a host says.
        """
        graded = [name for name, _ in experiment.rl.tasks if is_graded(name)]
        if graded:
            raise UserError(
                f"rl.rollout = {experiment.rl.rollout!r}: the curriculum of {graded[0]!r} is held "
                "by one worker; take 'inline'"
            )
        self._experiment, self._say, self.lost = experiment, say, 0
        self._weights = _on_host(params), _on_host(biases), updates
        workers = experiment.rl.workers
        if len(numbers) != workers:  # tasks between the smallest and the largest are passed over
            begin = -(-max(numbers, default=0) // workers) * workers
            numbers = [begin + worker for worker in range(workers)]
        self.numbers = list(numbers)
        self._restarts, self._lock = [0] * workers, threading.Lock()
        if experiment.rl.rollout == "ray":
            join_ray()  # here: the threads below end with the stage
        self._threads = ThreadPoolExecutor(workers, "rollout worker")
        self._remotes: list[Remote] = []
        try:
            self._remotes = list(self._threads.map(self._start, range(workers)))
        except BaseException:
            self.close()
            raise

    def _start(self, worker: int) -> Remote:
        params, biases, updates = self._weights
        place = Place(worker, self._experiment.rl.workers, self.numbers[worker], updates)
        kind = Process if self._experiment.rl.rollout == "process" else RayActor
        return kind(self._experiment, place, params, biases)

    def _all(self, name: str, *args: Any) -> list[Any]:
        """What every host answers, in their order; None of one that died."""

        def call(worker: int) -> Any:
            try:
                answer, self.numbers[worker] = self._remotes[worker](name, *args)
                return answer
            except Died as error:
                self._replace(worker, error)
                return None

        return list(self._threads.map(call, range(len(self._remotes))))

    def _replace(self, worker: int, error: Died) -> None:
        section = self._experiment.rl
        rows = max(section.concurrent // section.workers, section.group)
        groups = -(-rows // section.group) + self.portion
        with self._lock:
            self.lost += rows
        self.numbers[worker] += groups * section.workers  # behind all that it may have begun
        self._say(
            f"rollout worker {worker} died ({error}): up to {rows} rollouts are lost; another "
            f"begins at task {self.numbers[worker]:,}"
        )
        self._remotes[worker].close()
        while True:
            self._restarts[worker] += 1
            if self._restarts[worker] > RESTARTS:
                raise UserError(
                    f"rollout worker {worker} died {self._restarts[worker]} times ({error}); the "
                    "same command goes on from the last checkpoint. SIGKILL mostly means that "
                    "memory ran out: lower rl.concurrent"
                )
            try:
                self._remotes[worker] = self._start(worker)
                return
            except Died as again:
                error = again

    @property
    def portion(self) -> int:
        """Groups that a host is told to finish at a time."""
        section = self._experiment.rl
        return max(section.prompts // (ROUNDS * section.workers), 1)

    def step(self) -> list[Finished]:
        """A portion of groups of every host."""
        return _joined(self._all("run", self.portion))

    def drain(self) -> list[Finished]:
        """Lets all that is under way come to its end."""
        return _joined(self._all("drain"))

    def swap(self, params: Params, biases: Biases, updates: int) -> None:
        """All go on with other weights."""
        self._weights = _on_host(params), _on_host(biases), updates
        self._all("swap", *self._weights)

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Completes requests, divided among the hosts; nothing else is under way."""
        results: list[Result | None] = [None] * len(requests)
        left = list(range(len(requests)))
        while left:
            count = len(self._remotes)
            parts = [left[worker::count] for worker in range(count)]

            def call(worker: int, parts: list[list[int]] = parts) -> list[Result] | None:
                if not parts[worker]:
                    return []
                asked = [requests[i] for i in parts[worker]]
                try:
                    answer, self.numbers[worker] = self._remotes[worker]("generate", asked)
                    return answer
                except Died as error:
                    self._replace(worker, error)
                    return None

            for part, answers in zip(parts, self._threads.map(call, range(count)), strict=True):
                for i, result in zip(part, answers or [], strict=False):
                    results[i] = result
            left = [i for i in left if results[i] is None]
        return [result for result in results if result is not None]

    def close(self) -> None:
        """Ends the workers."""
        for remote in self._remotes:
            remote.close()
        self._threads.shutdown()


def _on_host(values: Params) -> Params:
    """As numpy arrays, which other processes can be sent."""
    return jax.device_get(values)


def _joined(parts: Sequence[list[Finished] | None]) -> list[Finished]:
    return [finished for part in parts for finished in part or []]
