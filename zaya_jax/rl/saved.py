"""What a stage of RL keeps beside a checkpoint: the buffer, and where it is in its tasks.

`rl/STEP.npz` is written before the checkpoint of that step gets its name, so every checkpoint has
its file; one without a checkpoint is a leftover.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zaya_jax.data.cache import atomic_path
from zaya_jax.errors import UserError
from zaya_jax.rl.buffer import Buffer, from_arrays, to_arrays
from zaya_jax.train.checkpoint import steps_in
from zaya_jax.train.workdir import CHECKPOINTS

FOLDER = "rl"


class Progress(NamedTuple):
    """Where a stage stands, between two updates, with no rollout under way.

    Attributes:
      buffer: groups that wait.
      numbers: of the next tasks, by rollout worker.
      best: p* of each source.
      counts: what happened so far, by name; for the metrics.
      curriculum: state of the graded tasks, if there are any.
      told: `counts` at the last update: metrics are of what came since.
    """

    buffer: Buffer
    numbers: list[int]
    best: dict[str, float]
    counts: dict[str, int]
    curriculum: dict[str, Any] | None = None
    told: Mapping[str, int] = {}


def write(folder: Path, step: int, progress: Progress) -> None:
    """Writes the file of a step, whole or not at all, and removes those without a checkpoint.

    Args:
      folder: the run directory.
    """
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    about = {
        "numbers": progress.numbers,
        "best": progress.best,
        "counts": progress.counts,
        "curriculum": progress.curriculum,
        "told": dict(progress.told),
    }
    arrays = {
        **to_arrays(progress.buffer),
        "progress": np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8),
    }
    with atomic_path(place / f"{step}.npz") as scratch, open(scratch, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # a file is as good as a name
    kept = {*steps_in(folder / CHECKPOINTS), step}
    for other in place.glob("*.npz"):
        if other.stem.isdigit() and int(other.stem) not in kept:
            other.unlink()


def read(folder: Path, step: int) -> Progress:
    """The file of a step.

    Raises:
      UserError: it is not there, or damaged.
    """
    file = folder / FOLDER / f"{step}.npz"
    try:
        with np.load(file, allow_pickle=False) as found:
            arrays = dict(found)
        about = json.loads(bytes(arrays.pop("progress")))
        return Progress(buffer=from_arrays(arrays), **about)
    except FileNotFoundError:
        raise UserError(
            f"{file} is not there: checkpoint {step} is none of a stage of RL; to start a stage "
            "from its weights, name it by train.init_from in another --workdir"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{file} is damaged ({error}): start from an earlier checkpoint") from None
