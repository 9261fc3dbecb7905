"""Where trials run: worker threads of this process, each watching a process; or a Ray cluster."""

from __future__ import annotations

import importlib
import os
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from zaya_jax.errors import UserError
from zaya_jax.sweep import machine
from zaya_jax.sweep.study import Outcome
from zaya_jax.sweep.supervise import RESTARTS, Task, sleep, supervise


class Executor(Protocol):
    """Runs trials, as many at a time as are submitted.

    Attributes:
      workers: how many should be, at most.
    """

    workers: int

    def submit(self, task: Task) -> Future[Outcome]:
        """Begins a trial."""

    def stop(self) -> None:
        """Tells the runs to save and end; their trials' state is then `stopped`."""

    def close(self) -> None:
        """Gives back what was held."""


class Local:
    """Threads that watch a process each.

    They are daemons: a second Ctrl-C does not wait for runs that are being saved. They live as long
    as this process, for the system takes a thread's end for that of its children's parent.

    Args:
      places: the variables for the runs of each worker.
    """

    def __init__(self, places: Sequence[Mapping[str, str]]):
        self.workers = len(places)
        self._stop = threading.Event()
        self._tasks: queue.SimpleQueue[tuple[Task, Future[Outcome]]] = queue.SimpleQueue()
        for place in places:
            threading.Thread(target=self._work, args=(place,), daemon=True).start()

    def submit(self, task: Task) -> Future[Outcome]:
        future: Future[Outcome] = Future()
        self._tasks.put((task, future))
        return future

    def _work(self, place: Mapping[str, str]) -> None:
        while True:
            task, future = self._tasks.get()
            try:
                future.set_result(supervise(task, place, self._stop.wait))
            except BaseException as error:  # a bug of ours: the main thread is to hear of it
                future.set_exception(error)

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        self.stop()


class Ray:
    """Tasks of a Ray cluster, whose nodes all see the sweep's directory and this code.

    Args:
      address: of the cluster: `auto` joins the one that runs here, `local` starts one, None joins
        or starts.
      workers: trials at a time; None lets the cluster have as many as fit.
      threads: of a run, on the CPU; where the cluster has GPUs, a run gets one of them.

    Raises:
      UserError: there is no ray package, or no such cluster, or none of its nodes has so many CPUs.
    """

    def __init__(self, address: str | None, workers: int | None, threads: int):
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError:
            raise UserError(
                "--executor=ray: the ray package is not installed; `pip install ray`, or take "
                "--executor=local"
            ) from None
        try:
            self._ray.init(
                address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UserError(f"--ray_address={address}: no cluster: {error}") from None
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpu = any(node.get("GPU") for node in nodes)
        name, each = ("GPU", 1) if gpu else ("CPU", threads)
        room = sum(int(node.get(name, 0)) // each for node in nodes)
        if not room:
            most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
            self._ray.shutdown()
            raise UserError(
                f"--threads={threads}: no node of the cluster has so many CPUs, a run would wait "
                f"for ever; the largest has {most}"
            )
        self.workers = workers or room
        self._environment = _python_path() | ({} if gpu else machine.limited(threads))
        share = {f"num_{name.lower()}s": each}
        self._remote = self._ray.remote(_supervise).options(max_retries=RESTARTS, **share)
        self._refs: dict[Future[Outcome], Any] = {}

    def submit(self, task: Task) -> Future[Outcome]:
        ref = self._remote.remote(task, self._environment, os.getcwd())
        future: Future[Outcome] = Future()
        self._refs[future] = ref
        ref.future().add_done_callback(lambda done: self._settle(future, done))
        return future

    def _settle(self, future: Future[Outcome], done: Future[Outcome]) -> None:
        del self._refs[future]
        error = done.exception()
        if error is None:
            future.set_result(done.result())
        elif isinstance(error, self._ray.exceptions.TaskCancelledError):
            future.set_result(Outcome("stopped"))
        elif isinstance(error, self._ray.exceptions.RayTaskError):
            future.set_exception(error)  # raised by our code
        else:
            future.set_result(Outcome("failed", reason=f"Ray: {type(error).__name__}: {error}"))

    def stop(self) -> None:
        for ref in list(self._refs.values()):
            self._ray.cancel(ref)

    def close(self) -> None:
        self._ray.shutdown()


def _python_path() -> dict[str, str]:
    """Where this process finds kinds of one's own, for runs that start in other folders."""
    folders = os.environ.get("PYTHONPATH")
    if not folders:
        return {}
    return {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, folders.split(os.pathsep)))}


def _supervise(task: Task, environment: Mapping[str, str], folder: str) -> Outcome:
    """What a Ray worker does: the same as a local one, in the folder of the command."""
    os.chdir(Path(folder))
    return supervise(task, environment, sleep)
