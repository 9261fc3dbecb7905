"""Folders that are either whole or absent."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zaya_jax.hf.safetensors_io import CheckpointError


@contextmanager
def atomic_folder(out: Path, *, needs: int, overwrite: bool = False) -> Iterator[Path]:
    """Lends a scratch folder that becomes `out` when the block ends without an error.

    The scratch folder lies beside `out` under a hidden name that ends in `.partial`, so a run that
    is killed half way leaves nothing that could be taken for a checkpoint.

    Args:
      out: the folder to be written.
      needs: bytes that will be written, checked against the free space first.
      overwrite: whether `out` may be a checkpoint already; it is replaced at the end.

    Raises:
      CheckpointError: `out` is not empty (or, with `overwrite`, holds what no checkpoint would), is
        not writable, or the disk is too small.
    """
    out = Path(os.path.abspath(out))
    _check_target(out, overwrite)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < needs:
            raise CheckpointError(
                f"{out}: no room: {needs / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB free"
            )
        scratch = out.parent / f".{out.name}-{secrets.token_hex(4)}.partial"
        scratch.mkdir()
    except OSError as error:
        raise CheckpointError(f"{out}: cannot write there: {error.strerror}") from error
    try:
        yield scratch
        if out.exists():
            old = scratch.with_suffix(".replaced")
            os.rename(out, old)
            os.rename(scratch, out)
            shutil.rmtree(old)
        else:
            os.rename(scratch, out)
    except OSError as error:
        raise CheckpointError(f"{out}: writing failed: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise CheckpointError(f"{out}: is a file; expected the name of a new folder")
    entries = {entry.name for entry in out.iterdir()}
    if not entries:
        return
    if not overwrite:
        raise CheckpointError(f"{out}: not empty: choose another name, or say --overwrite")
    folders = {entry.name for entry in out.iterdir() if entry.is_dir()}
    if not entries & {"config.json", "zaya.json"} or folders - {"origin", "tokenizer"}:
        raise CheckpointError(
            f"{out}: does not look like an exported or imported folder; it is not overwritten"
        )
