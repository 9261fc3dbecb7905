"""A model of this machine under test: a server of our own, for as long as it is asked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from zaya_jax.errors import UserError

LAUNCH = Path(__file__).parents[2] / "launch.py"
_ADDRESS = re.compile(r"at (http://\S+)")
END_SECONDS = 30.0
POLL_SECONDS = 0.5


@contextmanager
def served(model: str, options: Sequence[str]) -> Iterator[str]:
    """Serves a model on a free port of this machine inside the block.

    Args:
      model: as `--model=` takes it.
      options: further flags of `launch.py serve`.

    Yields:
      The server's URL. Its log goes to this process's standard error.

    Raises:
      UserError: the server ended before it was ready; its own words stand above.
    """
    command = [sys.executable, str(LAUNCH), "serve", f"--model={model}", "--port=0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = next(filter(None, map(_ADDRESS.search, process.stdout)), None)
        if found is not None:
            threading.Thread(target=_drain, args=(process.stdout,), daemon=True).start()
        if found is None or not _ready(found[1], process):
            raise UserError(
                f"--model={model}: its server ended with status {process.wait()}; the command was "
                + " ".join(command[1:])
            )
        yield found[1]
    finally:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(url: str, process: subprocess.Popen[str]) -> bool:
    """Waits for a server to have loaded and compiled, however long; False if it has ended."""
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/ready", timeout=POLL_SECONDS * 60):
                return True
        except OSError:  # 503: it is starting
            time.sleep(POLL_SECONDS)
    return False


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
