"""A helper process: JSON lines in, JSON lines out. It may fall without taking us along."""

from __future__ import annotations

import json
import select
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zaya_jax.aot import wheels


class Fallen(Exception):
    """The process ended, or did not answer in time; the next question starts a new one."""


class Helper:
    """`python -m MODULE ARGUMENTS FOLDER`, started at the first question.

    FOLDER is the process's own: it writes what is printed to `log.txt` there.
    """

    def __init__(self, python: str, module: str, arguments: Sequence[str]):
        self._folder = tempfile.TemporaryDirectory(prefix="zaya-aot-")
        self._command = [python, "-m", module, *arguments, self._folder.name]
        self._process: subprocess.Popen | None = None

    def ask(self, question: Mapping[str, Any], timeout: float) -> dict[str, Any]:
        """The answer to one question.

        Raises:
          Fallen: with the last words of the process.
        """
        process = self._process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise Fallen(self._last_words()) from None
        ready, _, _ = select.select([process.stdout], [], [], timeout)
        if not ready:
            self.stop()
            raise Fallen(f"no answer after {timeout:.0f} s")
        answer = process.stdout.readline()
        if not answer:
            raise Fallen(self._last_words())
        return json.loads(answer)

    def stop(self) -> str:
        """Ends the process; returns what it printed before it opened its log."""
        if self._process is None:
            return ""
        self._process.kill()
        _, told = self._process.communicate()
        self._process = None
        return told

    def kill(self) -> None:
        """Ends the process, from any thread: whoever waits for its answer hears that it fell."""
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        self.stop()
        self._folder.cleanup()

    def _start(self) -> subprocess.Popen:
        return subprocess.Popen(
            self._command,
            env=wheels.worker_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _last_words(self) -> str:
        assert self._process is not None
        status = self._process.wait()
        told = self.stop()
        log = Path(self._folder.name) / "log.txt"
        if log.exists():
            told += log.read_text(errors="replace")
        return f"the compiler ended with status {status}: {' | '.join(told.splitlines()[-3:])}"
