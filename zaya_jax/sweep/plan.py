"""From a choice of fields to experiments, a name and a command that a person can type."""

from __future__ import annotations

import functools
import runpy
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zaya_jax import load
from zaya_jax.config import Experiment, Sweep, from_dict, to_dict
from zaya_jax.errors import UserError
from zaya_jax.sweep import record
from zaya_jax.train import workdir

SAVED = "experiments/saved.py"
"""The experiment file that reads a resolved config."""


def experiment_of(sweep: Sweep, fields: Mapping[str, Any], seed: int) -> Experiment:
    """The experiment of one run; `{seed}` in `train.init_from` stands for its seed, so that a run
    can begin where one of another sweep ended.

    Raises:
      ConfigError: the fields make none that can be run.
    """
    data = to_dict(sweep.base)
    for path, value in {**fields, "train.seed": seed}.items():
        *sections, name = path.split(".")
        node = data
        for section in sections:
            node = node[section]
        node[name] = value
    if data["train"]["init_from"]:
        data["train"]["init_from"] = data["train"]["init_from"].replace("{seed}", str(seed))
    return from_dict(data)


def verb_of(experiment: Experiment) -> str:
    """The verb that runs an experiment: what asks tasks is a stage of reinforcement learning."""
    return "rl" if experiment.rl.tasks else "train"


def name_of(fields: Mapping[str, Any]) -> str:
    """Fields as text: "balance.kp=0.1 balance.ki=0.005"."""
    return " ".join(
        f"{path}={f'{value:.4g}' if isinstance(value, float) else value}"
        for path, value in fields.items()
    )


def config_file(sweep: Path, trial: int, seed: int) -> Path:
    """Where the resolved config of a run lies: beside its run directory."""
    return record.folder_of(sweep, trial, seed).with_suffix(".json")


def command_of(sweep: Sweep, experiment: Experiment, saved: Path) -> str:
    """The `launch.py train` or `rl` command of an experiment, without its `--workdir`.

    It names the experiment file of the sweep's base and the flags by which the experiment differs
    from it; where flags cannot say that, the resolved config.

    Args:
      saved: the resolved config.
    """
    there = _experiment_in(sweep.file) if sweep.file else None
    flags = None if there is None else flags_between(there, experiment)
    program = f"python launch.py {verb_of(experiment)}"
    if flags is None:
        return f"{program} --config={shlex.quote(f'{SAVED}:{saved}')}"
    return " ".join([f"{program} --config={shlex.quote(sweep.file)}", *flags])


def check_file(sweep: Sweep) -> None:
    """Whether commands can name the sweep's file.

    Raises:
      UserError: the file is no experiment file, or fails.
    """
    if sweep.file:
        _experiment_in(sweep.file)


def flags_between(there: Experiment, experiment: Experiment) -> list[str] | None:
    """The flags that turn one experiment into another; None if there are none that do."""
    changed = workdir.differences(to_dict(there), to_dict(experiment))
    if any(value is None for _, value in changed.values()):
        return None  # no flag sets a field to none
    return [f"--config.{path}={shlex.quote(str(value))}" for path, (_, value) in changed.items()]


@functools.cache
def _experiment_in(file: str) -> Experiment | None:
    """The experiment of a file as `--config` names it; None if it is not there, or has another.

    Raises:
      UserError: it has no `get_config`, or one that fails.
    """
    path, colon, argument = file.partition(":")
    if not Path(path).is_file():
        return None
    try:
        get_config = runpy.run_path(path).get("get_config")
        if get_config is None:
            raise AttributeError("it has no get_config")
        return load.experiment(get_config(*([argument] if colon else [])))
    except UserError:
        return None
    except Exception as error:  # it is the user's code
        raise UserError(f"file = {file!r}: {type(error).__name__}: {error}") from error
