"""What is to be said of one run: read from its directory, nothing computed anew."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from zaya_jax.config import Experiment, to_dict
from zaya_jax.errors import UserError
from zaya_jax.model.functional import (
    active_parameter_count,
    bias_declarations,
    parameter_count,
)
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
      train: records with a `loss`. evaluations: records with `heldout_bits_per_byte`.
      starts: of `environment.json`. data: of `data.json`.
    """

    folder: Path
    experiment: Experiment
    train: list[Record]
    evaluations: list[Record]
    starts: list[Record]
    data: Record

    @property
    def load(self) -> np.ndarray:
        """[L, E] shares of the held-out tokens, at the last evaluation."""
        return np.array(self.evaluations[-1]["heldout_load"], float)

    @property
    def biases(self) -> np.ndarray:
        """[L, E] balancing biases of the experts, at the last evaluation."""
        model, found = self.experiment.model, self.evaluations[-1]["biases"]
        rows: dict[int, list[float | None]] = {}
        for path, declaration in bias_declarations(model).items():
            layers = declaration.layers
            if isinstance(layers, tuple):
                rows |= dict(zip(layers, found[path], strict=True))
            elif layers is not None:
                rows[layers] = found[path]
        return np.array([rows[layer] for layer in sorted(rows)], float)[:, : model.router.experts]

    @property
    def results(self) -> Record:
        """The numbers that matter, by name."""
        first, last = self.evaluations[0], self.evaluations[-1]
        model = self.experiment.model
        found: Record = {
            "steps": last["step"],
            "held-out bits per byte, at the start": first["heldout_bits_per_byte"],
            "held-out bits per byte, at the end": last["heldout_bits_per_byte"],
            "held-out nats per token, at the end": last["heldout_loss"],
            "parameters": parameter_count(model),
            "active parameters per token": active_parameter_count(model),
        }
        if self.train:
            train = self.experiment.train
            tokens = train.batch_size * train.sequence_length
            rates = [r["tokens_per_second"] for r in self.train if r["tokens_per_second"]]
            found["tokens trained on"] = self.train[-1]["step"] * tokens
            found["training loss, last"] = self.train[-1]["loss"]
            found["router-load entropy, last"] = float(np.mean(self.train[-1]["load_entropy"]))
            found["tokens per second, median"] = float(np.median(rates)) if rates else None
            for title, field in OF_THE_LAST_LINE.items():
                if field in self.train[-1]:
                    found[title] = self.train[-1][field]
        return found


def read(folder: Path) -> Run:
    """Reads a run directory.

    Raises:
      UserError: it is none, or nothing was evaluated in it yet.
    """
    experiment = workdir.read_config(folder)
    evaluations = metrics.evaluations(folder)
    if not evaluations:
        raise UserError(f"{folder}: no evaluation in {workdir.METRICS} yet, nothing to report")
    return Run(
        folder=folder,
        experiment=experiment,
        train=[r for r in metrics.read(folder) if "loss" in r],
        evaluations=evaluations,
        starts=_json(folder / workdir.ENVIRONMENT, []),
        data=_json(folder / workdir.DATA, {}),
    )


def _json(file: Path, default: Any) -> Any:
    return json.loads(file.read_text()) if file.exists() else default


def changed_fields(experiment: Experiment) -> dict[str, Any]:
    """The fields that are not at their default, by dotted path."""
    found = workdir.differences(to_dict(Experiment()), to_dict(experiment))
    return {path: value for path, (_, value) in found.items()}
