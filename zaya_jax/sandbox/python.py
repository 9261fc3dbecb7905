"""Python in the sandbox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zaya_jax.sandbox import box
from zaya_jax.sandbox.bubblewrap import BOX
from zaya_jax.sandbox.check import require
from zaya_jax.sandbox.limits import Limits, Result

MAIN = "main.py"


def run_python(
    source: str,
    *,
    stdin: bytes = b"",
    arguments: Sequence[str] = (),
    files: Mapping[str, bytes] | None = None,
    limits: Limits | None = None,
) -> Result:
    """Runs a Python program, whatever it does, to its end.

    Args:
        source: the program. Nothing of it is trusted.
        stdin: what it can read.
        arguments: its `sys.argv[1:]`.
        files: more files beside it, by name: modules that it can import.
        limits: what it may use; by default `Limits()`.

    Returns:
        How it ended and what it wrote. A program that fails is a result, not an error.

    Raises:
        SandboxUnavailable: there is no sandbox on this machine, or it does not hold.
    """
    command = [require().python, "-s", f"{BOX}/{MAIN}", *arguments]
    given = {**(files or {}), MAIN: source.encode("utf-8", "surrogatepass")}
    return box.run(command, files=given, stdin=stdin, limits=limits)
