"""Opening a folder of weights, in any layout; all of it is checked before any of it is read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from zaya_jax import config as schema
from zaya_jax.config import Model
from zaya_jax.hf import config_map
from zaya_jax.hf import layout as layouts
from zaya_jax.hf import packed as packs
from zaya_jax.hf.files import HEADER, MANIFEST, ORIGIN, TOKENIZER
from zaya_jax.hf.files import TOKENIZER_FILES as TOKENIZER_FILES
from zaya_jax.hf.names import JAX, LEGACY, NATIVE, detect, places
from zaya_jax.hf.packed import Packed
from zaya_jax.hf.safetensors_io import (
    CheckpointError,
    Header,
    Reader,
    find_files,
    parse_header,
)
from zaya_jax.hf.weights import NonFinite, dominant_dtype
from zaya_jax.model.functional import Biases, Declaration, Params

FORMAT = 1  # of the manifest
BFLOAT16 = np.dtype(jnp.bfloat16)
FLOATS = tuple(np.dtype(jnp.dtype(d)) for d in ("bfloat16", "float16", "float32", "float64"))
SHOWN = 40  # names listed of each kind of mistake


@dataclasses.dataclass(frozen=True)
class Origin:
    """The Hugging Face folder that the weights came from, weights aside.

    layout: `native` or `legacy`.
    folder: where its config.json and the like are, as they were.
    headers: of its weight files, by name; none where the weights are not those of the files, but
      were quantized in them.
    """

    layout: str
    folder: Path
    headers: Mapping[str, Header]


@dataclasses.dataclass(frozen=True)
class Folder:
    """An opened folder, a `Source` of weights (see `zaya_jax.hf.weights`). Nothing is loaded yet.

    model: its section, in unrolled form, with the dtype of most weights.
    layout: `native`, `legacy` or `jax`.
    tokenizer_dir: where its `tokenizer.json` is; None if it has none.
    packed: experts that are quantized in the file, by native name. A part of them is given as what
      it stands for, rounded to bfloat16 (which MXFP4 fits into).
    """

    path: Path
    model: Model
    layout: str
    reader: Reader
    origin: Origin
    tokenizer_dir: Path | None
    packed: Mapping[str, Packed] = dataclasses.field(default_factory=dict)

    @property
    def packed_as(self) -> str:
        """In which kinds experts are quantized, for messages."""
        return ", ".join(sorted({packed.kind for packed in self.packed.values()}))

    def dtype(self, name: str) -> np.dtype:
        """The stored dtype of a tensor, by native name; of quantized ones that of their parts."""
        if name in self.packed:
            return BFLOAT16
        return self.reader.entries[places(self.model, self.layout)[name].names[0]].dtype

    def part(self, name: str, index: int) -> np.ndarray:
        """One piece of a tensor in our layout (see `weights.Source`), backed by the file."""
        place = places(self.model, self.layout)[name]
        if name in self.packed:
            value = packs.plain(self.reader, self.packed[name], index).astype(BFLOAT16)
            return layouts.from_hf(value, place.layout)
        value = self.reader.read(place.names[index if place.apart else 0])
        if place.stacked and not place.apart:
            value = value[index]
        return layouts.from_hf(value, place.layout)

    def load(
        self,
        param_dtype: str | None = None,
        progress: str | None = None,
        store: Callable[[Declaration, Any], Any] | None = None,
    ) -> tuple[Params, Biases]:
        """All weights in memory, as `functional.merge` of `self.model` takes them.

        Args:
          param_dtype: of the parameters, `model.param_dtype` by default. Balancing biases are
            float32 at least.
          progress: a word to show before a progress bar on a terminal; None for no bar.
          store: how each parameter is kept; quantized ones are given to it as they are. Without it
            everything is in `param_dtype`.

        Returns:
          Parameters and balancing biases by path. NaN and infinity are warned of, by name.
        """
        dtype = np.dtype(jnp.dtype(param_dtype or self.model.param_dtype))
        params: Params = {}
        biases: Biases = {}
        bad = NonFinite()
        table = places(self.model, JAX)
        for name, place in tqdm(
            table.items(), desc=progress, unit="tensor", disable=None if progress else True
        ):
            declaration = place.address.declaration
            is_bias = declaration.group == "balance"
            packed = self.packed.get(name)
            if packed is not None and packs.damaged(self.reader, packed):
                bad.names[name] = None
            if packed is not None and store is not None:
                kept = packs.kept(self.reader, packed, place.parts)
                params[place.address.path] = store(declaration, kept)
                continue
            wanted = np.dtype(jnp.promote_types(dtype, jnp.float32)) if is_bias else dtype
            value = np.empty(place.address.shape, wanted)
            for i in range(place.parts):
                part = self.part(name, i)
                bad.look(name, part)
                value[i if place.stacked else ...] = layouts.contiguous(part)
            found = jnp.asarray(value)
            if store is not None and not is_bias:
                found = store(declaration, found)
            (biases if is_bias else params)[place.address.path] = found
        bad.warn(self.path)
        return params, biases


def is_folder(path: Path | str) -> bool:
    """Whether `open_folder` is meant to open this: it has weights in safetensors or pickles, or is
    an imported folder."""
    path = Path(path)
    return path.is_dir() and any(
        (path / name).exists()
        for name in (
            MANIFEST,
            "model.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin",
            "pytorch_model.bin.index.json",
        )
    )


def open_folder(path: Path | str, layout: str | None = None) -> Folder:
    """Opens a folder of weights and checks every tensor's name, shape and dtype.

    Args:
      path: a Hugging Face folder in any layout, or one written by `launch.py import`.
      layout: `native` or `legacy` to insist on one; detected by tensor names by default.

    Raises:
      CheckpointError: no such folder, not a ZAYA1 checkpoint, damaged files, fields that cannot be
        expressed, or missing, extra and mis-shaped tensors, all listed at once.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise CheckpointError(_not_there(path))
    if (path / MANIFEST).exists():
        return _open_imported(path, layout)
    files = find_files(path, "model")
    if not files:
        raise CheckpointError(_no_weights(path))
    reader = Reader(files)
    found = detect(reader.entries)
    if found == "vl":
        raise CheckpointError(f"{path}: ZAYA1-VL is not supported, only the text models are")
    if found is None:
        some = ", ".join(list(reader.entries)[:3])
        raise CheckpointError(f"{path}: not a ZAYA1 checkpoint; it holds tensors such as {some}")
    if layout not in (None, found):
        raise CheckpointError(
            f"{path}: --layout={layout}, but the tensors have the names of the {found} layout; "
            "leave --layout out"
        )
    model = config_map.read(_read_json(path / "config.json"), str(path / "config.json"))
    packed = packs.find(reader.entries, places(model, found))
    _check_tensors(reader, model, found, path, packed)
    headers = {file.name: header for file, header in reader.headers.items()}
    tokenizer = path if (path / "tokenizer.json").exists() else None
    origin = Origin(found, path, {} if packed else headers)
    folder = Folder(path, model, found, reader, origin, tokenizer, packed)
    dtype = dominant_dtype(folder)
    model = dataclasses.replace(model, param_dtype=dtype, activation_dtype=dtype)
    return dataclasses.replace(folder, model=model)


def _open_imported(path: Path, layout: str | None) -> Folder:
    if layout is not None:
        raise CheckpointError(f"{path}: --layout={layout}, but this folder is imported already")
    manifest = _read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path / MANIFEST}: not of format {FORMAT}; import the folder anew")
    try:
        section = {"model": manifest["model"], "train": {"sequence_length": 1}}
        model = schema.from_dict(section).model
    except (KeyError, schema.ConfigError) as error:
        raise CheckpointError(f"{path / MANIFEST}: {error}") from error
    origin_layout = manifest.get("origin_layout")
    if origin_layout not in (NATIVE, LEGACY):
        raise CheckpointError(
            f"{path / MANIFEST}: origin_layout is {origin_layout!r}; known: {NATIVE}, {LEGACY}"
        )
    reader = Reader(find_files(path, "weights"))
    _check_tensors(reader, model, JAX, path)
    saved = sorted((path / ORIGIN).glob(f"*{HEADER}"))
    headers = {file.stem: parse_header(file.read_bytes(), str(file)) for file in saved}
    tokenizer = path / TOKENIZER
    return Folder(
        path,
        model,
        JAX,
        reader,
        Origin(origin_layout, path / ORIGIN, headers),
        tokenizer if (tokenizer / "tokenizer.json").exists() else None,
    )


def _read_json(path: Path):
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}") from error


def _check_tensors(
    reader: Reader,
    model: Model,
    layout: str,
    path: Path,
    packed: Mapping[str, Packed] = MappingProxyType({}),
) -> None:
    """Compares names, shapes and dtypes with what the config asks for."""
    table = {name: p for name, p in places(model, layout).items() if name not in packed}
    expected = {name: place.file_shape for place in table.values() for name in place.names}
    halves = {name for each in packed.values() for name in (each.values, each.scales)}
    entries = {name: entry for name, entry in reader.entries.items() if name not in halves}
    quantised = [
        f"{name} ({entry.dtype.name})"
        for name, entry in entries.items()
        if entry.dtype not in FLOATS
    ]
    ill_packed = [
        problem
        for name, each in packed.items()
        for problem in packs.problems(each, reader.entries, places(model, layout)[name].file_shape)
    ]
    misshaped = [
        f"{name} {list(entries[name].shape)}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in entries and entries[name].shape != shape
    ]
    mixed = [
        f"{place.names[0]} and others"
        for place in table.values()
        if len({entries[name].dtype for name in place.names if name in entries}) > 1
    ]
    problems = [
        *_list("missing", [name for name in expected if name not in entries]),
        *_list("not part of the model", [name for name in entries if name not in expected]),
        *_list("mis-shaped", misshaped),
        *_list("quantised experts that are not as FP8 or MXFP4 are published", ill_packed),
        *_list("quantised or not floating point, which is not read here", quantised),
        *_list("experts of one layer in different dtypes", mixed),
    ]
    if problems:
        raise CheckpointError(
            f"{path}: the tensors are not those that its config describes:\n" + "\n".join(problems)
        )


def _list(kind: str, names: list[str]) -> list[str]:
    """A headed list of at most `SHOWN` names; nothing if there are none."""
    if not names:
        return []
    more = [f"    ... and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return [f"  {len(names)} {kind}:", *(f"    {name}" for name in names[:SHOWN]), *more]


def _not_there(path: Path) -> str:
    message = f"{path}: no such folder"
    if len(path.parts) == 2 and not path.is_absolute():
        message += (
            f"; nothing is downloaded here. To fetch it from the hub: "
            f"hf download {path} --local-dir {path}"
        )
    return message


def _no_weights(path: Path) -> str:
    pickles = sorted(file.name for file in path.glob("*.bin"))
    if pickles:
        return (
            f"{path}: only pickled weights ({pickles[0]}), which are never opened because loading "
            "them runs code they bring along; convert them to safetensors where you trust them"
        )
    return (
        f"{path}: no weights: looked for model.safetensors, model.safetensors.index.json and "
        f"{MANIFEST}"
    )
