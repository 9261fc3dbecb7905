"""Which trials a sweep has: the arms, the points of a grid, or the base and what a sampler draws.

A draw is a function of the sweep, its number and the outcomes that it may know: those of the
batches before its own. Neither workers nor the clock have a say, so a sweep that was killed, or
runs on a cluster, comes to the same trials.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState

from zaya_jax import config
from zaya_jax.config import Sweep
from zaya_jax.config.sweep import Range
from zaya_jax.sweep.measures import MEASURES

optuna.logging.set_verbosity(optuna.logging.WARNING)

ARM = "arm"
"""What Optuna's storage calls the choice of an arm."""


@dataclasses.dataclass(frozen=True)
class Draw:
    """A choice of fields.

    Attributes:
      fields: by dotted path.
      params: the same as Optuna holds it, by name.
      arm: its name, under `search = arms`.
    """

    fields: dict[str, Any]
    params: dict[str, Any]
    arm: str | None = None


def total(sweep: Sweep) -> int:
    """How many trials the sweep has."""
    if sweep.search == "arms":
        return len(sweep.arms)
    if sweep.search == "grid":
        return math.prod(len(_values(leaf)) for leaf in config.space(sweep).values())
    return sweep.trials


def batch_of(sweep: Sweep, number: int) -> range:
    """The trials that are drawn and run together with trial `number`."""
    size = sweep.at_once if needs_outcomes(sweep) else total(sweep)
    start = number // size * size
    return range(start, min(start + size, total(sweep)))


def needs_outcomes(sweep: Sweep) -> bool:
    """Whether later trials, or what becomes of them, depend on the outcomes of earlier ones."""
    return sweep.search == "tpe" or sweep.pruning.kind != "none"


def distributions(sweep: Sweep) -> dict[str, BaseDistribution]:
    """What Optuna draws from; values it cannot hold, such as tuples, go by their index."""
    if sweep.search == "arms":
        return {ARM: CategoricalDistribution(list(sweep.arms))}
    return {path: _distribution(leaf) for path, leaf in config.space(sweep).items()}


def draw(sweep: Sweep, number: int, earlier: Sequence[FrozenTrial]) -> Draw:
    """The trial of a number.

    Args:
      earlier: all trials before it, by number. Of its own batch it knows that they are tried, not
        what came of them.
    """
    if sweep.search == "arms":
        name, fields = list(config.arms(sweep).items())[number]
        return Draw(fields, {ARM: name}, name)
    space = config.space(sweep)
    if sweep.search == "grid":
        points = itertools.product(*(range(len(_values(leaf))) for leaf in space.values()))
        point = next(itertools.islice(points, number, None))
        chosen = {
            path: _values(leaf)[i] for (path, leaf), i in zip(space.items(), point, strict=True)
        }
        return Draw(chosen, {path: _encoded(space[path], v) for path, v in chosen.items()})
    if number == 0 and (own := _own(sweep)) is not None:
        return own
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            direction=MEASURES[sweep.objective].goal, sampler=_sampler(sweep, number)
        )
        study.add_trials(known(sweep, number, earlier))
        params = study.ask(distributions(sweep)).params
    return Draw({path: _decoded(leaf, params[path]) for path, leaf in space.items()}, params)


def _own(sweep: Sweep) -> Draw | None:
    """The base itself, with which a search begins: what it finds is to be better. None if the base
    lies outside the space."""
    space, base = config.space(sweep), config.to_dict(sweep.base)
    fields = {path: functools.reduce(dict.__getitem__, path.split("."), base) for path in space}
    if not all(_holds(leaf, fields[path]) for path, leaf in space.items()):
        return None
    return Draw(fields, {path: _encoded(leaf, fields[path]) for path, leaf in space.items()})


def _holds(leaf: tuple | Range, value: Any) -> bool:
    if isinstance(leaf, Range):
        return value is not None and leaf.low <= value <= leaf.high
    return value in leaf


def known(sweep: Sweep, number: int, earlier: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials before `number` as it may see them: those of its own batch without an outcome."""
    start = batch_of(sweep, number).start
    return [
        trial
        if trial.number < start
        else optuna.trial.create_trial(
            state=TrialState.RUNNING, params=trial.params, distributions=trial.distributions
        )
        for trial in earlier[:number]
    ]


def _sampler(sweep: Sweep, number: int) -> optuna.samplers.BaseSampler:
    seed = int(np.random.SeedSequence([sweep.search_seed, number]).generate_state(1)[0])
    if sweep.search == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    # A liar takes trials that are being tried for bad ones: mates of a batch keep off each other.
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _values(leaf: Any) -> tuple:
    assert isinstance(leaf, tuple), "the sweep was not checked"
    return leaf


def _distribution(leaf: tuple | Range) -> BaseDistribution:
    if isinstance(leaf, Range):
        if isinstance(leaf.low, int):
            return IntDistribution(int(leaf.low), int(leaf.high), log=leaf.log)
        return FloatDistribution(leaf.low, leaf.high, log=leaf.log)
    return CategoricalDistribution([_encoded(leaf, value) for value in leaf])


def _by_index(leaf: Any) -> bool:
    return not isinstance(leaf, Range) and any(isinstance(value, tuple) for value in leaf)


def _encoded(leaf: tuple | Range, value: Any) -> Any:
    return _values(leaf).index(value) if _by_index(leaf) else value


def _decoded(leaf: tuple | Range, value: Any) -> Any:
    return _values(leaf)[value] if _by_index(leaf) else value
