"""Folders that are either whole or absent."""

from __future__ import annotations

import glob
import itertools
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zaya_jax.hf.files import ADAPTER_CONFIG, CONFIG, MANIFEST, foreign
from zaya_jax.hf.safetensors_io import CheckpointError

SHOWN = 5  # foreign files named in a refusal


@contextmanager
def atomic_folder(out: Path, *, needs: int, overwrite: bool = False) -> Iterator[Path]:
    """Lends a scratch folder that becomes `out` when the block ends without an error.

    The scratch folder lies beside `out` under a hidden name that ends in `.partial`, so a run that
    is killed half way leaves nothing that could be taken for a checkpoint. The next run tells of
    what such a one left.

    Args:
      out: the folder to be written.
      needs: bytes that will be written, checked against the free space first.
      overwrite: whether `out` may be a checkpoint already (only files that `zaya_jax.hf.files`
        knows); it is replaced at the end.

    Raises:
      CheckpointError: `out` is not empty (or, with `overwrite`, holds files of others), is
        not writable, or the disk is too small.
    """
    out = Path(os.path.realpath(out))  # a link is followed: what it points to is replaced
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _recover(out)
        _check_target(out, overwrite)
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
        _swap(scratch, out)
    except OSError as error:
        raise CheckpointError(f"{out}: writing failed: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _swap(scratch: Path, out: Path) -> None:
    """Puts `scratch` in the place of `out`; what `out` was is back if that fails."""
    if not out.exists():
        os.rename(scratch, out)
        return
    old = scratch.with_suffix(".replaced")
    try:
        os.rename(out, old)
        os.rename(scratch, out)
    except BaseException:
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise
    shutil.rmtree(old)


def _recover(out: Path) -> None:
    """Mends what a run that was killed left beside `out`, or names it.

    Killed between the two renames of a swap, it left the old folder under a hidden name: that one
    comes back. Other leftovers may be a run's that still writes, so they are not deleted.
    """
    name = f".{glob.escape(out.name)}-{'[0-9a-f]' * 8}"
    for old in sorted(out.parent.glob(f"{name}.replaced")):
        if not out.exists():
            os.rename(old, out)
            warnings.warn(f"{out}: restored; a run was killed while it replaced it", stacklevel=4)
    for left in sorted([*out.parent.glob(f"{name}.partial"), *out.parent.glob(f"{name}.replaced")]):
        warnings.warn(
            f"{left}: left by a run that was killed, unless one still writes {out}; delete it",
            stacklevel=4,
        )


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise CheckpointError(f"{out}: is a file; expected the name of a new folder")
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise CheckpointError(f"{out}: not empty: choose another name, or say --overwrite")
    strangers = list(itertools.islice(foreign(out), SHOWN + 1))
    if strangers:
        more = ", ..." if len(strangers) > SHOWN else ""
        raise CheckpointError(
            f"{out}: is not overwritten: neither export nor import wrote "
            f"{', '.join(strangers[:SHOWN])}{more}"
        )
    if not any((out / name).exists() for name in (CONFIG, MANIFEST, ADAPTER_CONFIG)):
        raise CheckpointError(f"{out}: is not overwritten: no {CONFIG} and no {MANIFEST} in it")
