"""Continuous batching: many requests at once, each as if it were alone.

`Engine` is the way in: `add` a request, `step` for events, `cancel`, `swap` the weights.
Underneath, `scheduler` and `allocator` decide (plain Python), and `programs` compute (pure
functions of the pool).
"""

from zaya_jax.infer.engine.driver import Engine, Load
from zaya_jax.infer.engine.grammar import Compiled, Constraint
from zaya_jax.infer.engine.options import Options
from zaya_jax.infer.engine.repetition import Repetition
from zaya_jax.infer.engine.request import Event, Request, Result, Token

__all__ = [
    "Compiled",
    "Constraint",
    "Engine",
    "Event",
    "Load",
    "Options",
    "Repetition",
    "Request",
    "Result",
    "Token",
]
