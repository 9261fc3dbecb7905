"""The weights of a run, without the rest of it: what inference, export and the next stage need."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from zaya_jax import lora
from zaya_jax.config import Experiment
from zaya_jax.errors import UserError
from zaya_jax.model.functional import Biases, Params, bias_declarations
from zaya_jax.parallel import ONE_DEVICE
from zaya_jax.train import checkpoint, start
from zaya_jax.train.workdir import CHECKPOINTS, read_config


def restore_weights(path: Path | str, step: int | None = None) -> tuple[Experiment, Params, Biases]:
    """The whole network of a run; adapters are merged into their base.

    Args:
      path: a run directory, its `checkpoints` folder, or one checkpoint in that.
      step: which checkpoint; None takes the newest that can be read.

    Returns:
      The run's experiment, its parameters, its balancing biases.

    Raises:
      UserError: no run or no such checkpoint there, or none that can be read; the base of the
        adapters is not where it was.
    """
    experiment, params, biases = restore_trained(path, step)
    if experiment.lora.rank:
        base = start.load_base(experiment, _find_run(Path(path))[0])
        params = lora.merge(experiment.model, experiment.lora, base.params, params)
    return experiment, params, biases


def restore_trained(path: Path | str, step: int | None = None) -> tuple[Experiment, Params, Biases]:
    """What a run trained: all parameters, or under LoRA the adapters alone.

    Takes, returns and raises as `restore_weights`; needs no base.
    """
    run, named = _find_run(Path(path))
    step = named if step is None else step
    experiment = read_config(run)
    folder = run / CHECKPOINTS
    steps = sorted(checkpoint.steps_in(folder), reverse=True)
    if not steps:
        raise UserError(f"{run} has no checkpoints yet")
    if step is not None and step not in steps:
        there = ", ".join(map(str, reversed(steps)))
        raise UserError(f"{run} has no checkpoint of step {step}; there are: {there}")
    wanted = _abstract(experiment)
    with ocp.StandardCheckpointer() as reader:
        for candidate in steps if step is None else [step]:
            try:
                checkpoint.check(folder / str(candidate), checkpoint.WEIGHTS)
                item = (folder / str(candidate) / checkpoint.WEIGHTS).absolute()
                weights = reader.restore(item, target=wanted)
            except Exception as error:  # whatever Orbax, TensorStore or the file system may raise
                place = folder / str(candidate)
                message = f"checkpoint {place} is damaged ({checkpoint.first_line(error)})"
                if step is not None:
                    raise UserError(message) from error
                warnings.warn(f"{message}; trying the one before it", stacklevel=2)
                continue
            return experiment, weights["params"], weights["biases"]
    raise UserError(f"none of the checkpoints in {folder} can be read")


def _abstract(experiment: Experiment) -> Any:
    places = {
        "params": lora.trained(experiment),
        "biases": bias_declarations(experiment.model),
    }
    return checkpoint.placed_on(
        ONE_DEVICE,
        {
            name: {k: jax.ShapeDtypeStruct(d.shape, d.dtype) for k, d in found.items()}
            for name, found in places.items()
        },
    )


def _find_run(path: Path) -> tuple[Path, int | None]:
    """The run directory of a path, and the step if the path is one checkpoint."""
    if path.name == CHECKPOINTS:
        return path.parent, None
    if path.parent.name == CHECKPOINTS and path.name.isdigit():
        return path.parent.parent, int(path.name)
    return path, None
