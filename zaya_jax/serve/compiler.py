"""Grammars of requests: compiled once for all choices, where they hold up and end nothing else.

A constraint comes from a stranger, and a compiler can be led to work for minutes or to overflow its
stack. So it is tried in a process of its own first, with a time limit; only what came through that
is compiled here. Threads that encode prompts have no part in it.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import tempfile
from concurrent.futures import ThreadPoolExecutor

from zaya_jax.answers.workers import Outcome, Workers
from zaya_jax.errors import UserError
from zaya_jax.infer.engine import Compiled, Constraint, Engine
from zaya_jax.serve.errors import ApiError, of_user_error

SECONDS = 10.0
"""For one constraint to compile."""
WAIT = 60.0
"""Seconds for those before it, too."""
MEMORY = 2 << 30
"""Bytes of address space for the process that tries."""


class Compiler:
    """Compiles constraints for one engine, one after the other.

    seconds, wait: see `SECONDS` and `WAIT`.
    """

    def __init__(self, engine: Engine, *, seconds: float = SECONDS, wait: float = WAIT):
        self._engine, self._seconds, self._wait = engine, seconds, wait
        self._pool = ThreadPoolExecutor(1, "grammar")
        self._workers: Workers | None = None
        self._vocabulary: str | None = None

    async def __call__(self, constraint: Constraint | None) -> Compiled | None:
        """None of none.

        Raises:
          ApiError: what is wrong with it; 503 if too many others are being compiled.
        """
        if constraint is None:
            return None
        try:
            known = await asyncio.to_thread(self._known, constraint)
            if known is not None:
                return known
            async with asyncio.timeout(self._wait):
                return await asyncio.wrap_future(self._pool.submit(self._compile, constraint))
        except TimeoutError:
            raise ApiError(
                503, "other grammars are being compiled", code="compiling", retry_after=10
            ) from None
        except UserError as error:
            raise of_user_error(error) from error

    def close(self) -> None:
        """Ends the process; what is under way fails."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._workers is not None:
            self._workers.close()
        if self._vocabulary is not None:
            os.unlink(self._vocabulary)
            self._vocabulary = None

    def _known(self, constraint: Constraint) -> Compiled | None:
        return self._engine.grammars.known(constraint)

    def _compile(self, constraint: Constraint) -> Compiled:
        grammars = self._engine.grammars
        if (known := grammars.known(constraint)) is not None:  # while it waited
            return known
        if self._workers is None or self._vocabulary is None:
            with tempfile.NamedTemporaryFile("wb", suffix=".vocabulary", delete=False) as file:
                pickle.dump(grammars.vocabulary, file)
            self._vocabulary = file.name
            self._workers = Workers(
                "zaya_jax.grammar.trial:attempt",
                processes=1,
                seconds=self._seconds,
                memory_bytes=MEMORY,
            )
        asked = (self._vocabulary, constraint.kind, constraint.text())
        self._judge(constraint, self._workers.map([asked])[0])
        return grammars.compile(constraint)

    def _judge(self, constraint: Constraint, outcome: Outcome) -> None:
        """Raises UserError for what did not come through, ApiError if it was not tried at all."""
        if outcome.failure == "unstarted":
            raise ApiError(500, f"no process to compile a grammar in: {outcome.message}")
        if outcome.failure is not None:
            why = {
                "timeout": f"it takes more than {self._seconds:g} s to compile",
                "died": "it is more than the compiler can take",
            }.get(outcome.failure, outcome.message)
            raise UserError(f"constraint: {constraint.kind}: {why}; simplify it")
        if outcome.value is not None:
            raise UserError(outcome.value)
