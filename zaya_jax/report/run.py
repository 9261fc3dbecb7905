"""What is to be said of one run: read from its directory, nothing computed anew.

A run may be under way, or have died: what is there is read, and `problems` says what is not.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zaya_jax import costs
from zaya_jax.config import Experiment, from_dict, to_dict
from zaya_jax.errors import UserError
from zaya_jax.model.functional import bias_declarations
from zaya_jax.train import metrics, workdir

Record = dict[str, Any]

OF_THE_LAST_LINE = {
    "steps not taken": "skipped",
    "rollbacks": "rollbacks",
    "model FLOPs utilisation": "mfu",
    "share of the time waiting for data": "data_wait",
    "most memory, bytes": "peak_memory_bytes",
    "programs compiled": "compilations",
    "seconds to compile them": "compile_seconds",
}
"""What the last training line says for the whole run (or its last start), as the page names it."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory as read.

    Attributes:
      config: `config.json` as it is.
      experiment: the same, typed; None if it is not of this version.
      records: all lines of `metrics.jsonl`.
      starts: of `environment.json`. data: of `data.json`.
      problems: what is missing or could not be read, in words.
    """

    folder: Path
    config: Record
    experiment: Experiment | None
    records: list[Record]
    starts: list[Record]
    data: Record
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return str(self.config.get("name") or self.folder.name)

    @property
    def train(self) -> list[Record]:
        """Records with a `loss`."""
        return [record for record in self.records if "loss" in record]

    @property
    def evaluations(self) -> list[Record]:
        """Records of held-out text or tasks."""
        return [record for record in self.records if metrics.is_evaluation(record)]

    @property
    def step(self) -> int:
        """Steps done, as far as was written."""
        return max((record["step"] for record in self.records), default=0)

    @property
    def steps(self) -> int | None:
        """Steps that it is to take; None if its config does not say."""
        return self.config.get("train", {}).get("steps")

    @property
    def finished(self) -> bool:
        """Whether it has the evaluation of its last step, without which measures are of earlier."""
        steps = self.steps
        return steps is None or any(record["step"] >= steps for record in self.evaluations)

    @property
    def so_far(self) -> str:
        """How much there is of a run that is not finished."""
        last = ", but not the last evaluation" if self.step >= (self.steps or 0) else ""
        return f"{self.step:,} of {self.steps:,} steps were told of so far{last}"

    @property
    def seconds(self) -> float:
        """Wall time, all its starts together, up to the last line written."""
        return self.records[-1].get("seconds", 0.0) if self.records else 0.0

    def core_seconds(self, threads: int | None = None) -> float:
        """Wall time by the cores that the run could use; more than it used where it shared them.

        Args:
          threads: those of a run that was kept to so many on a CPU.
        """
        last = self.starts[-1] if self.starts else {}
        cores = last.get("cores") or 1
        return self.seconds * (threads if threads and last.get("backend") == "cpu" else cores)

    @property
    def costs(self) -> costs.Costs | None:
        """None where the config is not one of this version."""
        return costs.of(self.experiment) if self.experiment else None

    def loads(self) -> tuple[list[int], np.ndarray] | None:
        """Steps [N] and shares [N, L, E] of the held-out tokens, at every evaluation."""
        return _stack((r["step"], _array(r.get("heldout_load"))) for r in self.evaluations)

    def biases(self) -> tuple[list[int], np.ndarray] | None:
        """Steps [N] and balancing biases [N, L, E] of the experts, at every evaluation."""
        return _stack((r["step"], self._biases(r.get("biases"))) for r in self.evaluations)

    def _biases(self, found: Any) -> np.ndarray | None:
        if self.experiment is None or not isinstance(found, Mapping):
            return None
        model = self.experiment.model
        rows: dict[int, Any] = {}
        for path, declaration in bias_declarations(model).items():
            layers = declaration.layers
            if path not in found:
                return None
            if isinstance(layers, tuple):
                rows |= dict(zip(layers, found[path], strict=False))
            elif layers is not None:
                rows[layers] = found[path]
        table = _array([rows[layer] for layer in sorted(rows)])
        return None if table is None else table[:, : model.router.experts]

    @property
    def results(self) -> Record:
        """The numbers that matter, by name, as far as they are known."""
        found: Record = {"steps": self.step}
        if texts := [r for r in self.evaluations if "heldout_bits_per_byte" in r]:
            first, last = texts[0], texts[-1]
            found |= {
                "held-out bits per byte, at the start": first["heldout_bits_per_byte"],
                "held-out bits per byte, at the end": last["heldout_bits_per_byte"],
                "held-out nats per token, at the end": last.get("heldout_loss"),
            }
        if cost := self.costs:
            found |= {
                "parameters": cost.parameters,
                "active parameters per token": cost.active_parameters,
                "training FLOPs per token": cost.flops_per_token,
                "KV cache bytes per token": cost.kv_bytes_per_token,
            }
        if self.train:
            last = self.train[-1]
            rates = [r["tokens_per_second"] for r in self.train if r.get("tokens_per_second")]
            train = self.config.get("train", {})
            if {"batch_size", "sequence_length"} <= set(train):
                a_step = train["batch_size"] * train["sequence_length"]
                found["tokens trained on"] = last["step"] * a_step
            found["training loss, last"] = last["loss"]
            if (entropy := _array(last.get("load_entropy"))) is not None:
                found["router-load entropy, last"] = float(np.mean(entropy))
            found["tokens per second, median"] = float(np.median(rates)) if rates else None
            for title, field in OF_THE_LAST_LINE.items():
                if field in last:
                    found[title] = last[field]
        if self.seconds:
            found |= {
                "wall time, seconds": round(self.seconds, 1),
                "core-seconds, at most": round(self.core_seconds(), 1),
            }
        return found


def read(folder: Path) -> Run:
    """Reads a run directory.

    Raises:
      UserError: it is none: it has no `config.json`, or one that is not JSON.
    """
    problems: list[str] = []
    config, experiment = _config(folder, problems)
    run = Run(
        folder=folder,
        config=config,
        experiment=experiment,
        records=_records(folder, problems),
        starts=read_json(folder / workdir.ENVIRONMENT, [], problems),
        # A stage of RL is given tasks, and has none.
        data=read_json(folder / workdir.DATA, {}, [] if asks(config) else problems),
    )
    if not run.evaluations:
        problems.append("Nothing was evaluated yet.")
    if not run.train:
        problems.append("No training step was told of yet.")
    if not run.finished:
        problems.append(f"Under way, or stopped: {run.so_far}.")
    return dataclasses.replace(run, problems=tuple(problems))


def asks(config: Mapping[str, Any]) -> bool:
    """Whether a config is of a stage of reinforcement learning, which asks tasks."""
    return bool(config.get("rl", {}).get("tasks"))


def _config(folder: Path, problems: list[str]) -> tuple[Record, Experiment | None]:
    file = folder / workdir.CONFIG
    try:
        config = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder} is no run directory: it has no {workdir.CONFIG}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} is no config: expected an object with fields")
    try:
        return config, from_dict(config)
    except UserError as error:
        mistakes = "; ".join(line.strip(" -") for line in str(error).splitlines()[1:])
        problems.append(
            f"{workdir.CONFIG} is not one of this version ({mistakes or error}): the costs and the "
            "biases, which need it, are left out."
        )
        return config, None


def _records(folder: Path, problems: list[str]) -> list[Record]:
    file = folder / workdir.METRICS
    if not file.exists():
        problems.append(f"There is no {workdir.METRICS} yet.")
        return []
    found = [r for r in metrics.read(folder) if isinstance(r, dict) and "step" in r]
    lines = sum(1 for line in file.read_text().splitlines() if line.strip())
    if lost := lines - len(found):
        problems.append(f"{lost} of {lines} lines of {workdir.METRICS} were cut off; left out.")
    return found


def read_json(file: Path, default: Any, problems: list[str]) -> Any:
    """What a file has, if it is of the type of `default`; else that, and a problem."""
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        problems.append(f"There is no {file.name}.")
    except (json.JSONDecodeError, UnicodeDecodeError):
        problems.append(f"{file.name} is not JSON; left out.")
    else:
        if isinstance(found, type(default)):
            return found
        problems.append(f"{file.name} is not what a run writes; left out.")
    return default


def _array(value: Any) -> np.ndarray | None:
    """Numbers of any rank, null as NaN; None for what is none."""
    if value is None:
        return None
    try:
        return np.array(value, float)
    except (TypeError, ValueError):
        return None


def _stack(pairs: Any) -> tuple[list[int], np.ndarray] | None:
    """Steps and tables of the same shape, one on the other; None where there are none."""
    known = [(step, table) for step, table in pairs if table is not None and table.ndim == 2]
    alike = [(step, table) for step, table in known if table.shape == known[-1][1].shape]
    if not alike:
        return None
    return [step for step, _ in alike], np.stack([table for _, table in alike])


def column(records: list[Record], name: str) -> tuple[list[int], np.ndarray]:
    """Steps [N] and numbers [N] or [N, L] of a field, over the records that have it."""
    there = [(r["step"], _array(r.get(name))) for r in records if r.get(name) is not None]
    known = [(step, value) for step, value in there if value is not None]
    alike = [(step, value) for step, value in known if value.shape == known[-1][1].shape]
    return [s for s, _ in alike], np.array([v for _, v in alike], float)


def changed_fields(config: Mapping[str, Any]) -> Record:
    """The fields that are not at their default, by dotted path."""
    default = json.loads(json.dumps(to_dict(Experiment())))  # lists for tuples, as in the file
    found = workdir.differences(default, config)
    return {path: value for path, (_, value) in found.items()}
