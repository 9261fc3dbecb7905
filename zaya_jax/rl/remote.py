"""Hosts in other processes: of this machine, or Ray actors; called by name, one call at a time."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

from zaya_jax.config import Experiment
from zaya_jax.errors import UserError
from zaya_jax.model.functional import Biases, Params
from zaya_jax.rl.host import Host, Place, opened
from zaya_jax.train.restart import die_with_parent

DEVICES = "ZAYA_WORKER_DEVICES"
"""Environment variable: the GPUs of the workers, one each: `1,2,3`, beside the trainer's 0."""


class Died(Exception):
    """A worker is gone; says how."""


class Remote(Protocol):
    """A host somewhere else; calls are answered one after the other."""

    def __call__(self, name: str, *args: Any) -> Any:
        """Calls a method of the host; its answer, and the number of its next task.

        Raises:
          Died: it is gone.
          UserError: the host raised one.
        """

    def close(self) -> None: ...


class Process:
    """A host in a process of this machine."""

    def __init__(self, experiment: Experiment, place: Place, params: Params, biases: Biases):
        self._one = threading.Lock()  # a question and its answer at a time, whoever asks
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, experiment, place, params, biases), daemon=True
        )
        self._process.start()
        other.close()
        self._receive()

    def __call__(self, name: str, *args: Any) -> Any:
        with self._one:
            try:
                self._pipe.send((name, args))
            except OSError:
                raise self._died() from None
            return self._receive()

    def _receive(self) -> Any:
        try:
            kind, answer = self._pipe.recv()
        except (EOFError, OSError):
            raise self._died() from None
        if kind == "user error":
            raise UserError(answer)
        if kind == "error":
            raise Died(answer)
        return answer

    def _died(self) -> Died:
        self._process.join(10)
        code = self._process.exitcode
        if code is not None and code < 0:
            return Died(signal.Signals(-code).name)
        return Died(f"exit status {code}")

    def close(self) -> None:
        self._pipe.close()
        self._process.join(2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(
    pipe: Connection, experiment: Experiment, place: Place, params: Params, biases: Biases
) -> None:
    """What a worker's process does: answers until nobody asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the trainer, which ends this
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(signal.SIGKILL)  # a killed trainer leaves none that hold its devices
    if devices := os.environ.get(DEVICES):
        own = devices.split(",")[place.worker % len(devices.split(","))]
        os.environ |= {"CUDA_VISIBLE_DEVICES": own, "ROCR_VISIBLE_DEVICES": own}
    try:
        answers = _Answers(experiment, place, params, biases)
    except UserError as error:
        pipe.send(("user error", str(error)))
        return
    pipe.send(("ok", None))
    while True:
        try:
            name, args = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            pipe.send(("ok", answers(name, args)))
        except UserError as error:
            pipe.send(("user error", str(error)))
        except Exception as error:  # a bug, or a device that failed: this worker is done for
            pipe.send(("error", f"{type(error).__name__}: {error}"))
            return


class _Answers:
    """A host that is called by name; every answer comes with the number of its next task."""

    def __init__(self, experiment: Experiment, place: Place, params: Params, biases: Biases):
        self._host = Host(experiment, opened(experiment), place, params, biases)

    def __call__(self, name: str, args: Sequence[Any]) -> tuple[Any, int]:
        answer = getattr(self._host, name)(*args)
        return answer, self._host.number


def join_ray() -> Any:
    """Joins the cluster, or starts one here, once in a process. To be called in a thread that lives
    as long as the cluster is to: Ray has what it starts die with the thread that started it.

    Returns:
      The ray module.

    Raises:
      UserError: it is not installed.
    """
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise UserError(
            "rl.rollout = 'ray': the ray package is not installed; "
            "pip install -r requirements-ray.txt, or take 'process'"
        ) from None
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    return ray


class RayActor:
    """A host in a Ray actor, on whatever node has room: a GPU where the cluster has some."""

    def __init__(self, experiment: Experiment, place: Place, params: Params, biases: Biases):
        self._ray = join_ray()
        gpu = self._ray.cluster_resources().get("GPU", 0) > 0
        share = {"num_gpus": 1} if gpu else {"num_cpus": 1}
        actor = self._ray.remote(_Answers).options(**share)
        self._actor = actor.remote(experiment, place, params, biases)
        self._get(self._actor.__call__.remote("pid", ()))

    def __call__(self, name: str, *args: Any) -> Any:
        return self._get(self._actor.__call__.remote(name, args))

    def _get(self, ref: Any) -> Any:
        try:
            return self._ray.get(ref)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise Died(str(error.cause or error)) from None
        except self._ray.exceptions.RayError as error:
            raise Died(type(error).__name__) from None

    def close(self) -> None:
        self._ray.kill(self._actor)
