"""A model of this machine under test: a server of our own, for as long as it is asked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from zaya_jax.errors import UserError

LAUNCH = Path(__file__).parents[2] / "launch.py"
_ADDRESS = re.compile(r"at (http://\S+)")
END_SECONDS = 30.0


@contextmanager
def served(model: str, options: Sequence[str]) -> Iterator[str]:
    """Serves a model on a free port of this machine inside the block.

    Args:
      model: as `--model=` takes it.
      options: further flags of `launch.py serve`.

    Yields:
      The server's URL. Its log goes to this process's standard error.

    Raises:
      UserError: the server ended before it listened; its own words stand above.
    """
    command = [sys.executable, str(LAUNCH), "serve", f"--model={model}", "--port=0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = next(filter(None, map(_ADDRESS.search, process.stdout)), None)
        if found is None:
            raise UserError(
                f"--model={model}: its server ended with status {process.wait()}; the command was "
                + " ".join(command[1:])
            )
        threading.Thread(target=_drain, args=(process.stdout,), daemon=True).start()
        yield found[1]
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _drain(stream: IO[str]) -> None:
    """A pipe that nobody reads would stop the server."""
    for _ in stream:
        pass


def rsa_of(text: str | None) -> dict[str, Any] | None:
    """What `--rsa=` says: the name of a preset, or an object of the server's `rsa` field.

    Raises:
      UserError: neither.
    """
    if text is None:
        return None
    if not text.lstrip().startswith("{"):
        return {"preset": text}
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"--rsa={text}: not JSON: {error}") from None
    if not isinstance(found, Mapping):
        raise UserError(f"--rsa={text}: expected an object, or the name of a preset")
    return dict(found)
