"""Files that are either whole or absent."""

from __future__ import annotations

import os
import tempfile
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
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
