"""Moving weights between layouts and places, one piece at a time.

A `Source` hands out any tensor of a model in our layout, piece by piece (an expert's matrix at a
time); `write_weights` lays the pieces into files of any layout. Neither ever holds more than one
piece, so memory does not grow with the model.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from zaya_jax.config import Model
from zaya_jax.hf import layout as layouts
from zaya_jax.hf.names import JAX, places
from zaya_jax.hf.safetensors_io import (
    CheckpointError,
    Header,
    Spec,
    index_of,
    plan,
    write_file,
)
from zaya_jax.model.forms import addresses
from zaya_jax.model.functional import Biases, Params, bias_declarations, declarations

SHARD_BYTES = 5e9


class Source(Protocol):
    """Weights that can be read piece by piece; tensors go by their native name.

    model: in unrolled form.
    """

    @property
    def model(self) -> Model: ...

    def dtype(self, name: str) -> np.dtype:
        """In which the tensor is stored."""
        ...

    def part(self, name: str, index: int) -> np.ndarray:
        """Piece `index` (see `names.Place.parts`) in our layout, possibly a view."""
        ...


class InMemory:
    """Parameters and balancing biases as a `Source`; layers in either form.

    Raises:
      CheckpointError: they are not those of the model; all differences at once.
    """

    def __init__(self, model: Model, params: Params, biases: Biases):
        declared = {**declarations(model), **bias_declarations(model)}
        self._values: Mapping[str, jax.Array] = {**params, **biases}
        problems = [f"missing {path}" for path in declared if path not in self._values]
        problems += [f"unknown {path}" for path in self._values if path not in declared]
        problems += [
            f"{path} has shape {tuple(value.shape)}, expected {declared[path].shape}"
            for path, value in self._values.items()
            if path in declared and tuple(value.shape) != declared[path].shape
        ]
        if problems:
            raise CheckpointError("these weights are not the model's: " + "; ".join(problems))
        self._addresses = addresses(declared)
        self._fetched = ("", np.empty(0))
        self.model = dataclasses.replace(model, layers="unroll")

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(self._values[self._addresses[name].path].dtype)

    def part(self, name: str, index: int) -> np.ndarray:
        address = self._addresses[name]
        value = self._on_host(address.path)
        if address.row is not None:
            value = value[address.row]
        return value[index] if places(self.model, JAX)[name].stacked else value

    def _on_host(self, path: str) -> np.ndarray:
        """The whole array, fetched once for all of its pieces; a view where it lives here."""
        if self._fetched[0] != path:
            self._fetched = (path, np.asarray(self._values[path]))
        return self._fetched[1]


class NonFinite:
    """Collects the names of tensors that hold NaN or infinity."""

    def __init__(self) -> None:
        self.names: dict[str, None] = {}

    def look(self, name: str, values: np.ndarray) -> None:
        """Looks at one piece."""
        # All exponent bits set: told from the bits, which is quick for 2-byte numbers too.
        info = jnp.finfo(values.dtype)
        bits = np.dtype(f"u{values.dtype.itemsize}").type
        mask = bits(((1 << info.nexp) - 1) << info.nmant)
        flat = layouts.flat(values).view(bits)
        for start in range(0, flat.size, 1 << 22):
            if ((flat[start : start + (1 << 22)] & mask) == mask).any():
                self.names[name] = None
                return

    def warn(self, where: Path | str) -> None:
        """Warns if any were found."""
        if self.names:
            warnings.warn(
                f"{where}: NaN or infinity in {len(self.names)} tensors: {', '.join(self.names)}",
                stacklevel=3,
            )


def dominant_dtype(source: Source) -> str:
    """The dtype of most of the weights, among those that a model section may name."""
    sizes: dict[np.dtype, int] = {}
    for name, place in places(source.model, JAX).items():
        size = int(np.prod(place.address.shape, dtype=np.int64))
        sizes[source.dtype(name)] = sizes.get(source.dtype(name), 0) + size
    name = max(sizes, key=lambda dtype: sizes[dtype]).name
    return "float32" if name == "float16" else name


def cast_rule(source: Source, name: str, dtype: str) -> np.dtype:
    """The dtype in which to write a tensor: `source`, or `dtype`; balancing biases stay theirs."""
    is_bias = places(source.model, JAX)[name].address.declaration.group == "balance"
    return source.dtype(name) if dtype == "source" or is_bias else np.dtype(jnp.dtype(dtype))


def specs_of(source: Source, layout: str, dtype: str) -> dict[str, Spec]:
    """Dtype and shape of every tensor that `write_weights` would write."""
    return {
        file_name: Spec(cast_rule(source, name, dtype), place.file_shape)
        for name, place in places(source.model, layout).items()
        for file_name in place.names
    }


def write_weights(
    source: Source,
    folder: Path,
    layout: str,
    *,
    dtype: str = "source",
    max_bytes: float = SHARD_BYTES,
    headers: Mapping[str, Header] | None = None,
    progress: str | None = None,
) -> NonFinite:
    """Writes all weights into `folder` and an index if they take several files.

    Args:
      source: where they come from.
      layout: of the files.
      dtype: `source` keeps that of each tensor; else a dtype to cast parameters to.
      max_bytes: of a file, unless a single tensor is larger.
      headers: write exactly these files instead of planning them; then no index is written.
      progress: a word to show before a progress bar on a terminal; None for no bar.

    Returns:
      Which tensors are not finite.
    """
    specs = specs_of(source, layout, dtype)
    table = places(source.model, layout)
    pieces = {
        file_name: (name, place, (i,) if place.apart else range(place.parts))
        for name, place in table.items()
        for i, file_name in enumerate(place.names)
    }
    bad = NonFinite()
    bar = tqdm(
        total=sum(spec.nbytes for spec in specs.values()),
        unit="B",
        unit_scale=True,
        desc=progress,
        disable=None if progress else True,
    )

    def chunks(header: Header) -> Iterator[np.ndarray]:
        for file_name in header.entries:
            name, place, parts = pieces[file_name]
            for i in parts:
                value = layouts.to_hf(source.part(name, i), place.layout)
                value = layouts.contiguous(value.astype(specs[file_name].dtype, copy=False))
                bad.look(file_name, value)
                yield value
                bar.update(value.nbytes)

    with bar:
        stem = "weights" if layout == JAX else "model"
        planned = plan(specs, stem, max_bytes) if headers is None else headers
        for file, header in planned.items():
            write_file(folder / file, header, chunks(header))
    if headers is None and len(planned) > 1:
        (folder / f"{stem}.safetensors.index.json").write_text(index_of(planned))
    return bad
