"""What a run tells while it runs: `metrics.jsonl`, TensorBoard events, W&B if asked to.

Each line of `metrics.jsonl` is one JSON object with a `step` (steps done when it was written) and
the `seconds` that the run had taken by then, all its starts together. Training lines have `loss`,
evaluation lines `heldout_bits_per_byte` (or `heldout_accuracy`, in a stage of reinforcement
learning); a list has one entry a layer, an object one an optimizer
group; null is what is no number. `zaya_jax.train.telemetry` says what the step's fields are.
"""

from __future__ import annotations

import importlib
import json
import math
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import SummaryWriter

from zaya_jax.config import Experiment, to_dict
from zaya_jax.data.cache import atomic_path
from zaya_jax.errors import UserError
from zaya_jax.train.workdir import METRICS, TENSORBOARD

Record = dict[str, Any]


def read(folder: Path) -> list[Record]:
    """The records of a run directory in order; a line that was cut off by a crash is left out."""
    file = folder / METRICS
    return [record for _, record in _lines(file)] if file.exists() else []


def is_evaluation(record: Mapping[str, Any]) -> bool:
    """Whether a record tells of what was held out: text, or tasks."""
    return "heldout_bits_per_byte" in record or "heldout_accuracy" in record


def evaluations(folder: Path) -> list[Record]:
    """Those records of a run directory that tell of what was held out, in order."""
    return [record for record in read(folder) if is_evaluation(record)]


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
      experiment: says whether to log to `train.wandb` as well; None does not.

    Raises:
      UserError: it does, and there is no wandb package.
    """

    def __init__(self, folder: Path, step: int, experiment: Experiment | None = None):
        self._wandb = _open_wandb(folder, experiment)
        file = folder / METRICS
        before = 0.0
        if file.exists():
            kept = [(line, record) for line, record in _lines(file) if record["step"] <= step]
            before = kept[-1][1].get("seconds", 0.0) if kept else 0.0
            with atomic_path(file) as scratch:
                scratch.write_text("".join(f"{line}\n" for line, _ in kept))
        self._began = time.monotonic() - before
        self._file = file.open("a", buffering=1)
        self._events = SummaryWriter(str(folder / TENSORBOARD), purge_step=step + 1)

    @property
    def seconds(self) -> float:
        """Wall time of the run so far: since this writer was made, and up to the last record that
        was there."""
        return time.monotonic() - self._began

    def __call__(self, step: int, record: Mapping[str, Any]) -> None:
        """Writes numbers and (nested) lists or arrays of numbers under `step`.

        Raises:
          UserError: the disk is full, or gone.
        """
        plain = {name: _plain(value) for name, value in record.items()}
        line = {"step": step, "seconds": round(self.seconds, 3), **plain}
        try:
            self._file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise UserError(f"{self._file.name}: cannot write there: {error.strerror}") from error
        numbers = {
            tag: number for name, value in plain.items() for tag, number in _scalars(name, value)
        }
        for tag, number in numbers.items():
            self._events.add_scalar(tag, number, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        """Flushes everything."""
        self._file.close()
        self._events.close()
        if self._wandb is not None:
            self._wandb.finish()


class Unwritten(Writer):
    """Of several processes, what all but one have: it writes nothing, and knows of no time."""

    def __init__(self, folder: Path, step: int, experiment: Experiment | None = None):
        del folder, step, experiment

    @property
    def seconds(self) -> float:
        """None."""
        return 0.0

    def __call__(self, step: int, record: Mapping[str, Any]) -> None:
        """Writes nothing."""

    def close(self) -> None:
        """Has nothing to close."""


def _open_wandb(folder: Path, experiment: Experiment | None) -> Any:
    """A run of Weights & Biases, the same for all starts in a run directory; None if not wanted."""
    if experiment is None or experiment.train.wandb is None:
        return None
    try:
        wandb = importlib.import_module("wandb")
    except ImportError:
        raise UserError(
            f"train.wandb = {experiment.train.wandb!r}: the wandb package is not installed; "
            "`pip install wandb`, or leave the field out: metrics.jsonl and TensorBoard have it all"
        ) from None
    return wandb.init(
        project=experiment.train.wandb,
        name=experiment.name,
        id=f"{zlib.crc32(str(folder.absolute()).encode()):08x}",
        resume="allow",
        dir=str(folder),
        config=to_dict(experiment),
    )


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


def _scalars(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """TensorBoard takes scalars: layers and groups get a tag each, whole matrices stay in JSON."""
    if isinstance(value, int | float):
        yield name, value
    elif isinstance(value, list) and all(isinstance(part, int | float) for part in value):
        yield from ((f"{name}/layer_{i}", part) for i, part in enumerate(value))
    elif isinstance(value, dict):
        for group, part in value.items():
            if isinstance(part, int | float):
                yield f"{name}/{group}", part
