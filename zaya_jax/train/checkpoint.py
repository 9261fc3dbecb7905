"""Saving and restoring a run: `checkpoints/<step>/` in its directory, written by Orbax.

A checkpoint has two items. `weights` holds {"params", "biases"}, all that inference needs; `train`
holds the rest of the state: step, optimizer, balancer. The step is the data cursor as well, for a
batch is a function of it. A step's folder appears under its name only once it is complete; its
manifest then tells damage apart from numbers.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from zaya_jax.config import Experiment
from zaya_jax.errors import UserError
from zaya_jax.model.functional import Biases, Params, bias_declarations, declarations
from zaya_jax.train import manifest
from zaya_jax.train import state as train_state
from zaya_jax.train.state import TrainState
from zaya_jax.train.workdir import CHECKPOINTS, read_config

WEIGHTS, TRAIN = "weights", "train"

logging.getLogger("absl").setLevel(logging.WARNING)  # Orbax tells every file that it touches


class Checkpoints:
    """The checkpoints of one run, newest kept.

    Args:
      folder: the run directory.
      experiment: gives shapes and dtypes, and how many to keep.
    """

    def __init__(self, folder: Path, experiment: Experiment):
        self._folder, self._experiment = folder / CHECKPOINTS, experiment
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(
            self._folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=self._experiment.train.keep_checkpoints,
                cleanup_tmp_directories=True,  # what a killed run left half written
                # The state is donated to the next step, so the copy must be over before it starts.
                enable_async_checkpointing=False,
            ),
        )

    def save(self, state: TrainState) -> int:
        """Writes the state under its step, if it is not there yet; returns the step."""
        step = int(state.step)
        if step not in self._manager.all_steps():
            weights, rest = _items(state)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{WEIGHTS: ocp.args.StandardSave(weights), TRAIN: ocp.args.StandardSave(rest)}
                ),
                force=True,
            )
            manifest.write(self._folder / str(step))
        return step

    def restore(self) -> TrainState | None:
        """The newest state that can be read, or None if there is no checkpoint.

        A checkpoint that cannot be read is named in a warning, set aside (renamed, so that its step
        can be saved again) and the one before it taken.

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        abstract = train_state.abstract(self._experiment)
        weights, rest = (_on_device(item) for item in _items(abstract))
        for step in steps:
            try:
                _check(self._folder / str(step))
                found = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        **{
                            WEIGHTS: ocp.args.StandardRestore(weights),
                            TRAIN: ocp.args.StandardRestore(rest),
                        }
                    ),
                )
            except Exception as error:  # whatever Orbax, TensorStore or the file system may raise
                self._set_aside(step, error)
                continue
            if not (self._folder / str(step) / manifest.MANIFEST).exists():
                manifest.write(self._folder / str(step))
            return TrainState(**found[WEIGHTS], **found[TRAIN])
        if steps or any(self._folder.glob("damaged-*")):
            raise UserError(
                f"none of the checkpoints in {self._folder} can be read (they were renamed, not "
                "deleted): start anew in another --workdir"
            )
        return None

    def newest(self) -> Path | None:
        """The folder of the last checkpoint, if there is one."""
        step = self._manager.latest_step()
        return None if step is None else self._folder / str(step)

    def _set_aside(self, step: int, error: Exception) -> None:
        damaged = self._folder / str(step)
        aside = self._folder / f"damaged-{step}"
        number = 1
        while aside.exists():
            number += 1
            aside = self._folder / f"damaged-{step}-{number}"
        self._manager.close()
        damaged.rename(aside)
        self._manager = self._open()
        warnings.warn(
            f"checkpoint {damaged} is damaged and was renamed {aside.name}; trying the one before "
            f"it ({_first_line(error)})",
            stacklevel=3,
        )

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()


def _check(folder: Path, part: str = "") -> None:
    found = manifest.damage(folder, part)
    if found:
        raise OSError(found)


def _items(state: TrainState) -> tuple[dict[str, Any], dict[str, Any]]:
    weights = {"params": state.params, "biases": state.biases}
    rest = {"step": state.step, "optimizer": state.optimizer, "balance": state.balance}
    return weights, rest


def _on_device(tree: Any) -> Any:
    """Shapes and dtypes of arrays that are to lie on the first device."""
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"


def find_run(path: Path) -> tuple[Path, int | None]:
    """The run directory of a path, and the step if the path is one checkpoint.

    Args:
      path: a run directory, its `checkpoints`, or one of those.

    Raises:
      UserError: it is none of these.
    """
    if path.name == CHECKPOINTS:
        return path.parent, None
    if path.parent.name == CHECKPOINTS and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return path, None


def restore_weights(path: Path | str, step: int | None = None) -> tuple[Experiment, Params, Biases]:
    """The weights of a run, and nothing else of it.

    Args:
      path: a run directory, its `checkpoints` folder, or one checkpoint in that.
      step: which checkpoint; None takes the newest that can be read.

    Returns:
      The run's experiment, its parameters, its balancing biases.

    Raises:
      UserError: no run or no such checkpoint there, or none that can be read.
    """
    run, named = find_run(Path(path))
    step = named if step is None else step
    experiment = read_config(run)
    folder = run / CHECKPOINTS
    steps = sorted((int(p.name) for p in folder.glob("[0-9]*") if p.name.isdigit()), reverse=True)
    if not steps:
        raise UserError(f"{run} has no checkpoints yet")
    if step is not None and step not in steps:
        there = ", ".join(map(str, reversed(steps)))
        raise UserError(f"{run} has no checkpoint of step {step}; there are: {there}")
    places = {
        "params": declarations(experiment.model),
        "biases": bias_declarations(experiment.model),
    }
    wanted = _on_device(
        {
            name: {k: jax.ShapeDtypeStruct(d.shape, d.dtype) for k, d in found.items()}
            for name, found in places.items()
        }
    )
    with ocp.StandardCheckpointer() as reader:
        for candidate in steps if step is None else [step]:
            try:
                _check(folder / str(candidate), WEIGHTS)
                item = (folder / str(candidate) / WEIGHTS).absolute()
                weights = reader.restore(item, target=wanted)
            except Exception as error:  # whatever Orbax, TensorStore or the file system may raise
                message = f"checkpoint {folder / str(candidate)} is damaged ({_first_line(error)})"
                if step is not None:
                    raise UserError(message) from error
                warnings.warn(f"{message}; trying the one before it", stacklevel=2)
                continue
            return experiment, weights["params"], weights["biases"]
    raise UserError(f"none of the checkpoints in {folder} can be read")
