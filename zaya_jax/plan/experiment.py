"""The experiment that a plan is for, from a config that may leave its model open."""

from __future__ import annotations

import dataclasses

import ml_collections

from zaya_jax import config, load
from zaya_jax.config import Experiment, Model
from zaya_jax.errors import UserError

PUBLISHED = Model(activation_dtype="bfloat16", remat="full")
"""ZAYA1-8B over float32 parameters, as its stages train it."""


def experiment_of(settings: ml_collections.ConfigDict) -> tuple[Experiment, str | None]:
    """The frozen form, and a note where something had to be assumed.

    A run that starts from weights reads its model from them; to plan it, they need not be there:
    then it is ZAYA1-8B in what the config leaves open. A stage of RL is planned on a mesh, although
    its loop drives one device so far: its step is written for many.

    Raises:
      UserError: mistakes in the config.
    """
    settings = settings.copy_and_resolve_references()
    mesh = settings.get("mesh", "")
    if settings.get("rl", {}).get("tasks"):
        settings.mesh = ""
    found, note = _frozen(settings)
    return dataclasses.replace(found, mesh=mesh), note


def _frozen(settings: ml_collections.ConfigDict) -> tuple[Experiment, str | None]:
    data = settings.to_dict()
    if not list(config.left_open(data.get("model", {}))):
        return config.from_dict(data), None
    try:
        return load.experiment(settings), None
    except UserError as reason:
        data["model"] = config.fill(data["model"], PUBLISHED)
        note = (
            f"note: the config leaves its model open, and it cannot be read ({reason}): planned as "
            "ZAYA1-8B in float32 parameters, bfloat16 activations, remat full"
        )
        return config.from_dict(data), note
