"""Runs programs that a model wrote, where they can do no harm, or not at all."""

from zaya_jax.sandbox.limits import Limits, Result, SandboxUnavailable, Status
from zaya_jax.sandbox.python import require, run_python

__all__ = ["Limits", "Result", "SandboxUnavailable", "Status", "require", "run_python"]
