"""Writing Hugging Face folders: from weights in memory, or from another folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from zaya_jax.config import Model
from zaya_jax.hf import config_map
from zaya_jax.hf.atomic import atomic_folder
from zaya_jax.hf.card import model_card
from zaya_jax.hf.files import GENERATION, LICENSE, ORIGIN_FILES, TOKENIZER, TOKENIZER_FILES
from zaya_jax.hf.folder import Folder, open_folder
from zaya_jax.hf.importer import copy_files, refuse_same
from zaya_jax.hf.names import JAX, NATIVE, places
from zaya_jax.hf.safetensors_io import CheckpointError, Header
from zaya_jax.hf.weights import (
    SHARD_BYTES,
    InMemory,
    Source,
    dominant_dtype,
    specs_of,
    write_weights,
)
from zaya_jax.model.functional import Biases, Params


def write_folder(
    model: Model,
    params: Params,
    biases: Biases,
    out: Path | str,
    *,
    layout: str = NATIVE,
    dtype: str = "source",
    max_shard_gb: float | None = None,
    tokenizer_dir: Path | str | None = None,
    facts: Mapping[str, object] | None = None,
    overwrite: bool = False,
    progress: str | None = None,
) -> Path:
    """Writes weights held in memory as a Hugging Face folder.

    Args:
      model, params, biases: the network, its layers in either form.
      out: a new or empty folder.
      layout: `native` (transformers) or `legacy`.
      dtype: `source` keeps each tensor's; `bfloat16` or `float32` casts the parameters.
      max_shard_gb: largest weight file, 5 by default.
      tokenizer_dir: where tokenizer.json and its companions are.
      facts: lines of a table in the model card, e.g. how it was trained.
      overwrite: replace an earlier export at `out`.
      progress: a word to show before a progress bar on a terminal; None for no bar.

    Returns:
      `out`.

    Raises:
      CheckpointError: `zaya` cannot express the model (every such field named), or `out` cannot be
        written.
    """
    source = InMemory(model, params, biases)
    tokenizer = None if tokenizer_dir is None else Path(tokenizer_dir)
    limit = SHARD_BYTES if max_shard_gb is None else max_shard_gb * 1e9
    return _write(source, Path(out), layout, dtype, limit, tokenizer, facts, overwrite, progress)


def convert_folder(
    folder: Folder,
    out: Path | str,
    *,
    layout: str | None = None,
    dtype: str = "source",
    max_shard_gb: float | None = None,
    overwrite: bool = False,
    progress: str | None = None,
) -> Path:
    """Writes an opened folder, imported or not, as a Hugging Face folder; streams.

    In the layout it came from, with `dtype` left alone, config.json and its companions come back as
    they were, and with `max_shard_gb` left alone the weight files too, byte for byte. Experts that
    were quantized in it are written in bfloat16, and config.json anew.

    Args:
      layout: the one it came from by default. Others: see `write_folder`.
    """
    out, origin = Path(out), folder.origin
    layout = origin.layout if layout is None else layout
    refuse_same(folder.path, out)
    limit = SHARD_BYTES if max_shard_gb is None else max_shard_gb * 1e9
    if layout != origin.layout or dtype != "source" or not origin.headers:
        tokenizer = folder.tokenizer_dir
        return _write(
            folder, out, layout, dtype, limit, tokenizer, None, overwrite, progress, origin.folder
        )
    kept: tuple[str, ...] = ORIGIN_FILES
    headers = None
    if max_shard_gb is None:
        _check_headers(folder, origin.headers)
        headers = origin.headers
    else:
        kept = tuple(name for name in kept if not name.endswith(".index.json"))
    needs = sum(spec.nbytes for spec in specs_of(folder, layout, dtype).values())
    with atomic_folder(out, needs=needs, overwrite=overwrite) as scratch:
        bad = write_weights(
            folder, scratch, layout, max_bytes=limit, headers=headers, progress=progress
        )
        copy_files(origin.folder, scratch, kept)
        tokenizer_files = folder.path / TOKENIZER if folder.layout == JAX else folder.path
        copy_files(tokenizer_files, scratch, TOKENIZER_FILES)
        open_folder(scratch)  # checks every header: what was written is what was meant
        bad.warn(folder.path)
    return out


def _check_headers(folder: Folder, headers: Mapping[str, Header]) -> None:
    """The saved headers must speak of the weights that are there."""
    specs = specs_of(folder, folder.origin.layout, "source")
    saved = {n: (e.dtype, e.shape) for h in headers.values() for n, e in h.entries.items()}
    if saved != {name: tuple(spec) for name, spec in specs.items()}:
        raise CheckpointError(
            f"{folder.origin.folder}: these headers do not fit the weights beside them; import the "
            "folder anew, or give --max_shard_gb to plan the files anew"
        )


def _write(
    source: Source,
    out: Path,
    layout: str,
    dtype: str,
    limit: float,
    tokenizer: Path | None,
    facts: Mapping[str, object] | None,
    overwrite: bool,
    progress: str | None,
    origin: Path | None = None,
) -> Path:
    config_map.refuse(inexpressible(source))
    for warning in deviations(source, layout):
        warnings.warn(warning, stacklevel=3)
    model = source.model
    written = dominant_dtype(source) if dtype == "source" else dtype
    needs = sum(spec.nbytes for spec in specs_of(source, layout, dtype).values())
    with atomic_folder(out, needs=needs, overwrite=overwrite) as scratch:
        bad = write_weights(
            source, scratch, layout, dtype=dtype, max_bytes=limit, progress=progress
        )
        _write_json(scratch / "config.json", config_map.write(model, layout, written))
        ids = {"bos": model.bos_id, "eos": model.eos_id, "pad": model.pad_id}
        named = {f"{role}_token_id": i for role, i in ids.items()}
        _write_json(scratch / GENERATION, named)
        if origin is not None:
            copy_files(origin, scratch, (GENERATION, LICENSE))
        if tokenizer is not None:
            copy_files(tokenizer, scratch, TOKENIZER_FILES)
        (scratch / "README.md").write_text(model_card(model, layout, written, facts or {}))
        open_folder(scratch)  # checks every header: what was written is what was meant
        bad.warn(out)
    return out


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


# --- What `zaya` can say --------------------------------------------------------------------------


def _biases(source: Source) -> dict[int, np.ndarray]:
    """The balancing biases [classes] in float64, by layer."""
    return {
        place.address.layer: source.part(name, 0).astype(np.float64)
        for name, place in places(source.model, JAX).items()
        if place.address.declaration.group == "balance" and place.address.layer is not None
    }


def inexpressible(source: Source) -> list[str]:
    """Every field for which the Hugging Face model has no word; empty if it has for all."""
    problems = config_map.inexpressible(source.model)
    if source.model.router.skip == "passthrough":
        # A skipping token beats all experts only if p_skip + b_skip > p_j + b_j for all j. As
        # p_skip <= 1 and p_j > 0, it never does where some b_j exceeds 1 + b_skip.
        open_layers = [i for i, b in _biases(source).items() if not b[:-1].max() > 1 + b[-1]]
        if open_layers:
            problems.append(
                "model.router.skip = 'passthrough': a skipped token gives zero there, and tokens "
                f"can skip in layers {', '.join(map(str, open_layers))}"
            )
    return problems


def deviations(source: Source, layout: str) -> list[str]:
    """Where transformers will compute something slightly different from this model."""
    if layout != NATIVE:
        return []
    notes = []
    if not source.model.residual_in_fp32:
        notes.append(
            "model.residual_in_fp32 = False: transformers carries the residual stream in float32 "
            "all the same, a small difference"
        )
    moved = [i for i, bias in _biases(source).items() if bias[-1] != -1]
    if moved:
        notes.append(
            f"the skip class's balancing bias is not -1 in layers {', '.join(map(str, moved))}: "
            "from_pretrained of transformers 5.23 sets it to -1; copy the buffers again after it"
        )
    return notes
