"""LoRA adapters in PEFT's layout: `adapter_config.json` and `adapter_model.safetensors`.

| adapter of | here | PEFT |
|---|---|---|
| a projection, A | [in, r] | `q_proj.lora_A.weight` [r, in] |
| a projection, B | [r, out] | `q_proj.lora_B.weight` [out, r] |
| experts, A | [E, in, r] | [E * r, in], experts outermost |
| experts, B | [E, r, out] | [out, r * E], experts innermost |

PEFT reaches the experts, which are no modules in transformers, by `target_parameters`. The names
of all tensors stand in their declarations (see `zaya_jax.lora`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zaya_jax import lora as lora_lib
from zaya_jax.config import Lora, Model
from zaya_jax.hf import config_map
from zaya_jax.hf import layout as layouts
from zaya_jax.hf.atomic import atomic_folder
from zaya_jax.hf.files import ADAPTER_CONFIG, TOKENIZER_FILES
from zaya_jax.hf.importer import copy_files
from zaya_jax.hf.safetensors_io import CheckpointError, Reader, Spec, plan, write_file
from zaya_jax.model.forms import Address, addresses
from zaya_jax.model.functional import Params

PREFIX = "base_model.model."
STEM = "adapter_model"
SHOWN = 6  # names listed of each kind of mistake

_MODULES = {
    "q": ("q_proj",),
    "k": ("k_proj",),
    "v": ("v_proj_current", "v_proj_delayed"),
    "o": ("o_proj",),
    "experts": (),
}
_PARAMETERS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
# What PEFT's LoRA may do beside W + alpha / r * A @ B, and the value that leaves it out.
_PLAIN: dict[str, Any] = {
    "bias": "none",
    "fan_in_fan_out": False,
    "lora_bias": False,
    "use_dora": False,
    "use_rslora": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
}


def to_peft(x: np.ndarray, path: str) -> np.ndarray:
    """The adapter of one layer, path `...lora_a` or `...lora_b`, as PEFT stores it."""
    if x.ndim == 2:
        return x.T
    if path.endswith(lora_lib.A):
        return x.swapaxes(1, 2).reshape(-1, x.shape[1])
    return x.transpose(2, 1, 0).reshape(x.shape[2], -1)


def from_peft(x: np.ndarray, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Undoes `to_peft`, given the shape here."""
    if len(shape) == 2:
        return x.T
    experts, rows, columns = shape
    if path.endswith(lora_lib.A):
        return x.reshape(experts, columns, rows).swapaxes(1, 2)
    return x.reshape(columns, rows, experts).transpose(2, 1, 0)


def peft_shape(shape: tuple[int, ...], path: str) -> tuple[int, int]:
    """Shape in PEFT of an adapter of `shape` here."""
    *experts, rows, columns = shape
    count = experts[0] if experts else 1
    return (count * columns, rows) if path.endswith(lora_lib.A) else (columns, rows * count)


def _table(model: Model, lora: Lora) -> dict[str, Address]:
    """Where each tensor of the file lies here, by its name there."""
    found = addresses(lora_lib.declarations(model, lora))
    return {PREFIX + name: address for name, address in found.items()}


def write_adapter(
    model: Model,
    lora: Lora,
    adapters: Params,
    out: Path | str,
    *,
    base: str | None = None,
    tokenizer_dir: Path | str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the adapters alone, as PEFT 0.17 or newer loads them onto transformers' Zaya.

    Args:
      model: what they adapt, its layers in the form that the adapters have.
      base: Hugging Face folder or hub name of the base; PEFT's Auto classes look there.
      Others: see `hf.write_folder`.

    Returns:
      `out`.

    Raises:
      CheckpointError: a base that `zaya` cannot express, or `out` cannot be written.
    """
    config_map.refuse(config_map.inexpressible(model))
    out, table = Path(out), _table(model, lora)
    specs = {
        name: Spec(np.dtype(adapters[place.path].dtype), peft_shape(place.shape, place.path))
        for name, place in table.items()
    }
    ((file, header),) = plan(specs, STEM, float("inf")).items()

    def chunks() -> Iterator[np.ndarray]:
        for name in header.entries:
            place = table[name]
            value = np.asarray(adapters[place.path])
            value = value if place.row is None else value[place.row]
            yield layouts.contiguous(to_peft(value, place.path))

    with atomic_folder(out, needs=header.data_bytes, overwrite=overwrite) as scratch:
        write_file(scratch / file, header, chunks())
        settings = json.dumps(_settings(lora, base), indent=2, sort_keys=True)
        (scratch / ADAPTER_CONFIG).write_text(settings + "\n")
        if tokenizer_dir is not None:
            copy_files(Path(tokenizer_dir), scratch, TOKENIZER_FILES)
    return out


def _settings(lora: Lora, base: str | None) -> dict[str, Any]:
    """The content of adapter_config.json."""
    alpha = int(lora.alpha) if lora.alpha.is_integer() else lora.alpha
    return {
        **_PLAIN,
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": [module for name in lora.targets for module in _MODULES[name]],
        "target_parameters": list(_PARAMETERS) if "experts" in lora.targets else None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of adapter_config.json.

    Raises:
      CheckpointError: there is none, or it is not one of a plain LoRA adapter.
    """
    file = folder / ADAPTER_CONFIG
    try:
        settings = json.loads(file.read_text("utf-8"))
        kind, rank, alpha = (settings[name] for name in ("peft_type", "r", "lora_alpha"))
        fine = isinstance(rank, int) and rank > 0 and isinstance(alpha, int | float)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: not the settings of an adapter: {error!r}") from error
    if kind != "LORA" or not fine:
        raise CheckpointError(f"{file}: peft_type {kind!r}, r {rank!r}: expected LORA and a rank")
    for name, plain in _PLAIN.items():
        if settings.get(name, plain) not in (plain, None, [], {}):
            raise CheckpointError(f"{file}: {name} = {settings[name]!r}: only {plain!r} is read")
    return settings


def read_adapter(folder: Path | str, model: Model) -> tuple[Lora, Params]:
    """Adapters from a folder in PEFT's layout.

    Args:
      folder: what PEFT's `save_pretrained` or `write_adapter` wrote.
      model: what they are to adapt; its form of the layers is that of the result.

    Returns:
      The section that describes them, and the adapters in the dtype that their declarations say.

    Raises:
      CheckpointError: a damaged folder, or the adapter of another model; names the tensors.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    reader = Reader([folder / f"{STEM}.safetensors"])
    rank, alpha = settings["r"], float(settings["lora_alpha"])
    targets = tuple(
        name
        for name in lora_lib.TARGETS
        if _table(model, Lora(rank, alpha, (name,))).keys() & reader.entries.keys()
    )
    lora = Lora(rank, alpha, targets)
    table = _table(model, lora)
    shapes = {name: peft_shape(place.shape, place.path) for name, place in table.items()}
    there = {name: entry.shape for name, entry in reader.entries.items()}
    if shapes != there:
        wrong = sorted(name for name in {*shapes, *there} if shapes.get(name) != there.get(name))
        lines = [
            f"  {name}: {there.get(name, 'missing')}, expected {shapes.get(name, 'no such tensor')}"
            for name in wrong[:SHOWN]
        ]
        raise CheckpointError(
            f"{folder}: not an adapter of this model, {len(wrong)} tensors differ:\n"
            + "\n".join(lines)
        )
    declared = lora_lib.declarations(model, lora)
    values = {path: np.empty(d.shape, d.dtype) for path, d in declared.items()}
    for name, place in table.items():
        row = ... if place.row is None else place.row
        values[place.path][row] = from_peft(reader.read(name), place.path, place.shape)
    return lora, {path: jax.numpy.asarray(value) for path, value in values.items()}
