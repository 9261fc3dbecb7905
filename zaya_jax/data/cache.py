"""Files that are either whole or absent."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Lends a scratch path that becomes `path` when the block ends without an error.

    The scratch file lies in the same folder, so the final rename is atomic: a reader, a
    second process or a run that is killed half way sees the old file or the new one, never a
    part of one.

    Args:
        path: the file to be written; its folder is created if need be.

    Yields:
        The path to write to. It keeps the suffix of `path`, which some writers look at.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    # Not by tempfile, whose files nobody else may read: these get the permissions of any new file.
    os.close(os.open(scratch, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield scratch
        with scratch.open("rb") as file:  # its bytes reach the disk before its name does
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def is_scratch(path: Path) -> bool:
    """Whether a path is one that `atomic_path` lends: a process killed in its block leaves it."""
    return re.fullmatch(r"\..+-[0-9a-f]{8}(\.[^.]+)?", path.name) is not None
