"""What a run tells while it runs: `metrics.jsonl` and TensorBoard events.

Each line of `metrics.jsonl` is one JSON object with a `step` (steps done when it was written).
Training lines have `loss`, evaluation lines `heldout_bits_per_byte`; a list has one entry a layer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from zaya_jax.data.cache import atomic_path
from zaya_jax.train.workdir import METRICS, TENSORBOARD

Record = dict[str, Any]


def read(folder: Path) -> list[Record]:
    """The records of a run directory in order; a line that was cut off by a crash is left out."""
    file = folder / METRICS
    return [record for _, record in _lines(file)] if file.exists() else []


def _lines(file: Path) -> list[tuple[str, Record]]:
    found = []
    for line in file.read_text().splitlines():
        try:
            found.append((line, json.loads(line)))
        except json.JSONDecodeError:
            continue
    return found


class Writer:
    """Appends records to a run directory.

    Args:
      folder: the run directory.
      step: where the run stands. Records of later steps, written by a run that died before its
        next checkpoint, are removed: those steps are done again.
    """

    def __init__(self, folder: Path, step: int):
        file = folder / METRICS
        if file.exists():
            kept = [line for line, record in _lines(file) if record["step"] <= step]
            with atomic_path(file) as scratch:
                scratch.write_text("".join(f"{line}\n" for line in kept))
        self._file = file.open("a", buffering=1)
        purge = step + 1 if step else None
        self._events = SummaryWriter(str(folder / TENSORBOARD), purge_step=purge)

    def __call__(self, step: int, record: Mapping[str, Any]) -> None:
        """Writes numbers and (nested) lists or arrays of numbers under `step`."""
        plain = {name: _plain(value) for name, value in record.items()}
        self._file.write(json.dumps({"step": step, **plain}) + "\n")
        for name, value in plain.items():
            for tag, number in _scalars(name, value):
                self._events.add_scalar(tag, number, step)

    def close(self) -> None:
        """Flushes everything."""
        self._file.close()
        self._events.close()


def _plain(value: Any) -> Any:
    """Python numbers, rounded to what float32 can tell apart, for arrays of any rank."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    array = np.asarray(value)
    if array.ndim:
        return [_plain(part) for part in array]
    number = array.item()
    if isinstance(number, float):
        # JSON has no NaN: what is not a number is written as null.
        return float(f"{number:.9g}") if math.isfinite(number) else None
    return number


def _scalars(name: str, value: Any) -> list[tuple[str, float]]:
    """TensorBoard takes scalars: layers get a tag each, whole matrices stay in the JSON."""
    if isinstance(value, int | float):
        return [(name, value)]
    if isinstance(value, list) and all(isinstance(part, int | float) for part in value):
        return [(f"{name}/layer_{i}", part) for i, part in enumerate(value)]
    return []
