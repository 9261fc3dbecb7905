"""From a Hugging Face folder to one in our layout, tensor by tensor.

An imported folder holds `weights*.safetensors` (our paths, weights [in, out], the source's dtype
for each tensor), `zaya.json` (the model section), `tokenizer/`, and `origin/`: whatever else the
source held and the headers of its weight files, from which `export` can write the very same bytes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

from zaya_jax.hf.atomic import atomic_folder
from zaya_jax.hf.files import (
    HEADER,
    MANIFEST,
    ORIGIN,
    ORIGIN_FILES,
    TOKENIZER,
    TOKENIZER_FILES,
)
from zaya_jax.hf.folder import FORMAT, Folder, open_folder
from zaya_jax.hf.names import JAX
from zaya_jax.hf.safetensors_io import CheckpointError
from zaya_jax.hf.weights import specs_of, write_weights


def import_folder(
    source: Path | str,
    out: Path | str,
    *,
    layout: str | None = None,
    overwrite: bool = False,
    progress: str | None = None,
) -> Folder:
    """Writes `source` anew in our layout and opens the result.

    Args:
      source: a Hugging Face folder (see `open_folder`).
      out: a new or empty folder.
      layout: insist on `native` or `legacy`.
      overwrite: replace an earlier import at `out`.
      progress: a word to show before a progress bar on a terminal; None for no bar.

    Raises:
      CheckpointError: the source cannot be read, or `out` cannot be written.
    """
    folder, out = open_folder(source, layout), Path(out)
    if folder.layout == JAX:
        raise CheckpointError(f"{source}: imported already")
    refuse_same(folder.path, out)
    needs = sum(spec.nbytes for spec in specs_of(folder, JAX, "source").values())
    with atomic_folder(out, needs=needs, overwrite=overwrite) as scratch:
        write_weights(folder, scratch, JAX, progress=progress).warn(folder.path)
        copy_files(folder.path, scratch / TOKENIZER, TOKENIZER_FILES)
        copy_files(folder.path, scratch / ORIGIN, ORIGIN_FILES)
        for file, header in folder.origin.headers.items():
            (scratch / ORIGIN / f"{file}{HEADER}").write_bytes(header.raw)
        manifest = {
            "format": FORMAT,
            "origin_layout": folder.layout,
            "model": dataclasses.asdict(folder.model),
        }
        (scratch / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        open_folder(scratch)  # checks every header: what was written is what was meant
    return open_folder(out)


def copy_files(source: Path, target: Path, names: tuple[str, ...]) -> list[str]:
    """Copies those of `names` that are in `source`, creating `target` if any is; returns them."""
    found = [name for name in names if (source / name).is_file()]
    for name in found:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
    return found


def refuse_same(source: Path, out: Path) -> None:
    """Raises CheckpointError if writing `out` would touch what is read."""
    real_source, real_out = os.path.realpath(source), os.path.realpath(out)
    if os.path.commonpath([real_source, real_out]) in (real_source, real_out):
        raise CheckpointError(f"--out={out} must lie outside of {source}, which is read")
