"""The state that a run starts in, and the weights that it stands on."""

from __future__ import annotations

import dataclasses
import functools
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from zaya_jax import load
from zaya_jax.config import Experiment
from zaya_jax.errors import UserError
from zaya_jax.model import functional
from zaya_jax.model.functional import Biases, Params
from zaya_jax.parallel import ONE_DEVICE, OneDevice
from zaya_jax.parallel.processes import ALONE, Alone
from zaya_jax.train import state as train_state
from zaya_jax.train import workdir
from zaya_jax.train.state import TrainState

HOW = (
    "param_dtype", "activation_dtype", "numerics", "layers", "remat", "ops", "init_std",
    "pad_id", "bos_id", "eos_id",
)  # fmt: skip
"""Fields (or sections) of a model that say how it is computed, or were checked with the tokenizer:
weights serve under any."""
EXTENSION = ("context_length", "attention.rope_theta", "attention.window_rope_theta")
"""Fields that are changed on purpose when weights are taken to longer texts."""


class Weights(NamedTuple):
    """All values of a network, in the dtypes and the form of the layers that a config says."""

    params: Params
    biases: Biases


def first_state(
    experiment: Experiment,
    tell: Callable[[str], None],
    base: Weights | None = None,
    layout: OneDevice = ONE_DEVICE,
) -> TrainState:
    """The state at step 0: drawn from the seed, or with the weights of `train.init_from`.

    Args:
      experiment: what to train.
      tell: gets a line for each field that may differ from the weights' model, and does.
      base: what `load_base` gave, under LoRA: the run has a copy of its biases. The step gives the
        buffers of its state away, and a run that goes back to its start needs them again.
      layout: where a new network is drawn.

    Raises:
      UserError: as `read_weights`.
    """
    if base is not None:
        state = train_state.init(experiment)
        return train_state.from_weights(
            experiment, state.params, {path: jnp.copy(b) for path, b in base.biases.items()}
        )
    if experiment.train.init_from is None:
        return layout.make(functools.partial(train_state.init, experiment))
    weights = read_weights(experiment, experiment.train.init_from, tell)
    return train_state.from_weights(experiment, weights.params, weights.biases)


def read_weights(experiment: Experiment, path: Path | str, tell: Callable[[str], None]) -> Weights:
    """The weights at `path` (see `zaya_jax.load`), for the model of `experiment`.

    Raises:
      UserError: those weights are of another model; the message lists the fields.
    """
    model, init_from = experiment.model, experiment.train.init_from
    loaded = load.load(path, layers=model.layers)
    changed = {
        field: f"model.{field}: {ours!r} in the config, {theirs!r} there"
        for field, (theirs, ours) in workdir.differences(
            dataclasses.asdict(loaded.model), dataclasses.asdict(model)
        ).items()
        if field.split(".")[0] not in HOW
    }
    problems = [f"  {line}" for field, line in changed.items() if field not in EXTENSION]
    if problems:
        raise UserError(
            f"train.init_from = {init_from}: not the model of the config:\n" + "\n".join(problems)
        )
    for line in changed.values():
        tell(f"note: {line} (train.init_from = {init_from})")
    params = {
        path: loaded.params[path].astype(declaration.dtype)
        for path, declaration in functional.declarations(model).items()
    }
    biases = {
        path: loaded.biases[path].astype(declaration.dtype)
        for path, declaration in functional.bias_declarations(model).items()
    }
    return Weights(params, biases)


def load_base(
    experiment: Experiment,
    folder: Path,
    tell: Callable[[str], None] = lambda line: None,
    group: Alone = ALONE,
) -> Weights:
    """The weights under a run's adapters: those that it first stood on, or none at all.

    The first call writes `base.json` in the run directory: where they are, down to the checkpoint,
    and their checksum. Later ones open what that says.

    Args:
      experiment: has a `lora.rank`, hence a `train.init_from`.
      folder: the run directory.
      tell: see `first_state`.
      group: the processes of the run, of which the first writes.

    Raises:
      UserError: they are not there any more, or are not the same; or as `read_weights`.
    """
    file = folder / workdir.BASE
    first: list[Weights] = []

    def pin() -> None:
        if file.exists():
            return
        path = _pinned(str(experiment.train.init_from))
        first.append(read_weights(experiment, path, tell))
        workdir.write_json(file, {"path": str(path), "crc32": _checksum(first[0])})

    group.share(pin)
    if first:
        return first[0]
    record = json.loads(file.read_text())
    stands = f"the adapters of {folder} stand on the weights of {record['path']}"
    way = f"put them back, or write where they are now into {file}"
    try:
        weights = read_weights(experiment, record["path"], tell)
    except UserError as error:
        raise UserError(f"{stands}, which cannot be read: {error}\n{way}") from error
    if _checksum(weights) != record["crc32"]:
        raise UserError(f"{stands}, which are others now; {way}")
    return weights


def _pinned(init_from: str) -> Path:
    """The absolute path of weights that stay as they are: of a run, its newest checkpoint."""
    from zaya_jax.train.checkpoint import steps_in

    source = load.locate(Path(init_from).expanduser().absolute())
    if source.kind == "folder":
        return source.path
    checkpoints = source.path / workdir.CHECKPOINTS
    steps = [source.step] if source.step is not None else steps_in(checkpoints)
    if not steps:
        raise UserError(f"train.init_from = {init_from}: no checkpoints yet")
    return checkpoints / str(max(steps))


def _checksum(weights: Weights) -> int:
    """CRC-32 of all values, in the order of their paths."""
    value = 0
    for values in weights:
        for path in sorted(values):
            value = zlib.crc32(np.asarray(values[path]).tobytes(), value)
    return value
