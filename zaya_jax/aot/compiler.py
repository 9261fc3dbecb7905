"""Compiles programs for GPUs that are not here, in a process of its own for each target."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

from zaya_jax.aot import wheels
from zaya_jax.aot.process import Fallen, Helper
from zaya_jax.aot.program import Job
from zaya_jax.aot.report import Report, from_json
from zaya_jax.aot.targets import Target, target_of
from zaya_jax.errors import UserError

TIMEOUT = 1800.0  # seconds


class Compiler(contextlib.AbstractContextManager):
    """A worker process that compiles for one target, job after job.

    A job that brings the process down, or takes too long, costs that job alone.
    """

    def __init__(self, target: Target | str, python: str | None = None):
        """Args:
          target: or its name.
          python: the interpreter that has the wheels; by default `wheels.interpreter()`.

        Raises:
          UserError: no such target, or its compiler is not installed.
        """
        self.target = target_of(target) if isinstance(target, str) else target
        self.python = python or wheels.interpreter()
        reason = wheels.unavailable(self.target, self.python)
        if reason is not None:
            raise UserError(reason)
        self._helper = Helper(self.python, "zaya_jax.aot.worker", [self.target.name])

    def __exit__(self, *exception: object) -> None:
        self._helper.close()

    def stop(self) -> None:
        """From another thread: what is being compiled falls."""
        self._helper.kill()

    def compile(self, job: Job, timeout: float = TIMEOUT) -> Report:
        """Compiles one job. A compiler's refusal, its fall, or `timeout` seconds gone by are told
        by the report's `error`."""
        try:
            return from_json(self._helper.ask(dataclasses.asdict(job), timeout))
        except Fallen as reason:
            return Report(self.target.name, job.devices, error=str(reason))


def compile(
    function: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    target: Target | str,
    mesh: Mapping[str, int] | None = None,
    want_hlo: bool = False,
    want_kernels: bool = False,
    timeout: float = TIMEOUT,
) -> Report:
    """Compiles one program in a process of its own; several are cheaper with a `Compiler`.

    Args:
      function: "package.module:name" of a function that returns a `Program`.
      arguments: JSON values for it; see `Job`, as for the other arguments.

    Raises:
      UserError: no such target, or its compiler is not installed.
    """
    job = Job(
        function,
        dict(arguments or {}),
        mesh=mesh,
        want_hlo=want_hlo,
        want_kernels=want_kernels,
    )
    with Compiler(target) as compiler:
        return compiler.compile(job, timeout)
