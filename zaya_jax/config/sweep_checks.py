"""Which sweeps can be run: mistakes in arms and spaces, found before anything is drawn."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

from zaya_jax.config.build import WrongType, accepted_types, typed
from zaya_jax.config.schema import Experiment
from zaya_jax.config.sweep import PRUNERS, SEARCHES, Sweep, flat, nested
from zaya_jax.errors import hint

SEED = "train.seed"


def check_sweep(sweep: Sweep, problems: list[str]) -> Sweep:
    """A well-typed sweep with the values of its arms and its space as the experiment holds them.

    Measures are not looked at: the schema does not know them.

    Args:
      problems: gets a line for each mistake.
    """
    _check_numbers(sweep, problems)
    arms = {
        name: nested(_arm(section, f"arms.{name}", problems))
        for name, section in sweep.arms.items()
    }
    space = nested(_space(sweep, problems))
    _check_search(sweep, problems)
    _check_claims(sweep, problems)
    return dataclasses.replace(sweep, arms=arms, space=space)


def _check_numbers(sweep: Sweep, problems: list[str]) -> None:
    for name in ("trials", "at_once"):
        if getattr(sweep, name) < 1:
            problems.append(f"{name} = {getattr(sweep, name)}: expected at least 1")
    if sweep.search_seed < 0:
        problems.append(f"search_seed = {sweep.search_seed}: expected 0 or more")
    if not sweep.seeds:
        problems.append("seeds is empty: expected the seeds of every trial's runs, as (0, 1, 2)")
    for i, seed in enumerate(sweep.seeds):
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            problems.append(f"seeds has {seed!r}: expected whole numbers from 0")
        elif seed in sweep.seeds[:i]:
            problems.append(f"seeds has {seed} twice")
    pruning = sweep.pruning
    if pruning.kind not in PRUNERS:
        problems.append(f"pruning.kind = {pruning.kind!r}{hint(pruning.kind, PRUNERS)}")
    if pruning.after_trials < 1:
        problems.append(f"pruning.after_trials = {pruning.after_trials}: expected at least 1")
    if pruning.after_step < 0:
        problems.append(f"pruning.after_step = {pruning.after_step}: expected 0 or more")


def _check_search(sweep: Sweep, problems: list[str]) -> None:
    if sweep.search not in SEARCHES:
        problems.append(f"search = {sweep.search!r}{hint(sweep.search, SEARCHES)}")
        return
    wanted, other = ("arms", "space") if sweep.search == "arms" else ("space", "arms")
    if not getattr(sweep, wanted):
        problems.append(f"{wanted} is empty: search = {sweep.search} has nothing to try")
    if getattr(sweep, other):
        problems.append(f"{other} is given, but search = {sweep.search} goes through {wanted}")
    if sweep.search == "grid":
        for path, leaf in flat(sweep.space).items():
            if isinstance(leaf, Mapping):
                problems.append(
                    f"space.{path} is a range: search = grid expects a tuple of values there"
                )


def _check_claims(sweep: Sweep, problems: list[str]) -> None:
    for claim in sweep.claims:
        if (
            not isinstance(claim, tuple)
            or len(claim) != 4
            or not all(isinstance(part, str) for part in claim)
        ):
            problems.append(
                f"claims has {claim!r}: expected (measure, better arm, worse arm, who says so)"
            )
            continue
        for arm in claim[1:3]:
            if arm not in sweep.arms:
                problems.append(f"claims: no arm {arm!r}{hint(arm, sweep.arms)}")


def _arm(section: Any, where: str, problems: list[str]) -> dict[str, Any]:
    """The fields of an arm, as the experiment holds them."""
    if not isinstance(section, Mapping):
        problems.append(f"{where} = {section!r}: expected sections with fields")
        return {}
    found = {}
    for path, value in flat(section).items():
        annotation = _annotation(path, where, problems)
        if annotation is None:
            continue
        try:
            found[path] = typed(annotation, value)
        except WrongType as error:
            problems.append(f"{where}.{path} = {value!r}: {error}")
    return found


def _space(sweep: Sweep, problems: list[str]) -> dict[str, Any]:
    """What is searched, as the experiment holds it."""
    found: dict[str, Any] = {}
    for path, leaf in flat(sweep.space).items():
        annotation, where = _annotation(path, "space", problems), f"space.{path}"
        if annotation is None:
            continue
        if isinstance(leaf, Mapping):
            found[path] = _range(annotation, leaf, where, problems)
        elif isinstance(leaf, list | tuple):
            found[path] = _values(annotation, leaf, where, problems)
        else:
            problems.append(
                f"{where} = {leaf!r}: expected a tuple of values, or a range with low and high"
            )
    return found


def _values(annotation: Any, leaf: Any, where: str, problems: list[str]) -> tuple:
    values: list[Any] = []
    if not leaf:
        problems.append(f"{where} is empty: expected values to try")
    for value in leaf:
        try:
            value = typed(annotation, value)
        except WrongType as error:
            problems.append(f"{where} has {value!r}: {error}")
            continue
        if value in values:
            problems.append(f"{where} has {value!r} twice")
        values.append(value)
    return tuple(values)


def _range(
    annotation: Any, leaf: Mapping[str, Any], where: str, problems: list[str]
) -> dict[str, Any]:
    """A range as a mapping with all its fields."""
    found = {"log": False, **leaf}
    kinds = accepted_types(annotation)
    kind: type = int if int in kinds else float
    unknown = [name for name in found if name not in ("low", "high", "log")]
    if unknown:
        accepted = hint(unknown[0], ("low", "high", "log"))
        problems.append(f"no field '{where}.{unknown[0]}'{accepted}")
    elif "low" not in found or "high" not in found:
        problems.append(f"{where} = {dict(leaf)}: expected a range with low and high")
    elif kind not in kinds:
        problems.append(f"{where} is a range, but the field is no number: expected a tuple")
    elif not isinstance(found["log"], bool):
        problems.append(f"{where}.log = {found['log']!r}: expected bool")
    else:
        try:
            low, high = typed(kind, found["low"]), typed(kind, found["high"])
        except WrongType as error:
            problems.append(f"{where} = {dict(leaf)}: of low and high, {error}")
            return {}
        if not (math.isfinite(low) and math.isfinite(high)) or low >= high:
            problems.append(f"{where} is empty: low = {low}, high = {high}; expected low < high")
        if found["log"] and low <= 0:
            problems.append(f"{where}.low = {low}: expected more than 0, since log = True")
        return {"low": low, "high": high, "log": found["log"]}
    return {}


def _annotation(path: str, where: str, problems: list[str]) -> Any:
    """The annotation of an experiment's field; None, and a problem, if there is no such field."""
    cls: Any = Experiment
    if path == SEED:
        problems.append(f"{where}.{path}: seeds are an axis of their own; expected them in seeds")
        return None
    for name in path.split("."):
        annotations = typing.get_type_hints(cls)
        if name not in annotations:
            problems.append(f"no field '{where}.{path}'{hint(name, annotations)}")
            return None
        cls = annotations[name]
    if dataclasses.is_dataclass(cls):
        problems.append(f"{where}.{path}: expected fields of this section")
        return None
    return cls
