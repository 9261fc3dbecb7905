"""Which sources a config names: one, a weighted mixture, or what was prepared of either.

`launch.py data --out=DIR` gives every source of a mixture a folder in DIR, and DIR a file that
names them with their weights; DIR is then a source like any other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zaya_jax.config.checks import check_mixture, check_ratio
from zaya_jax.config.schema import Data
from zaya_jax.data import folders
from zaya_jax.data.cache import atomic_path

MIXTURE = "mixture.index.json"
"""Names the prepared folders beside it, with their weights; a folder with one is a source."""


class Entry(NamedTuple):
    """One source of a mixture.

    Attributes:
        source: its name.
        weights: its share of the rows in every stretch of `data.mixture_schedule`; the first is
            that of `data.mixture`.
        folder: where it was prepared, if it was.
    """

    source: str
    weights: tuple[float, ...]
    folder: Path | None

    @property
    def weight(self) -> float:
        """Its share at the beginning."""
        return self.weights[0]


def resolve(data: Data) -> list[Entry]:
    """The sources of a section with their shares; prepared mixtures give their own sources.

    What `launch.py data` made of a mixture may be named by `data.source` with the mixture still in
    the config, and stands in its place.

    Raises:
        ValueError: a mistake in the mixture or its schedule, the same source twice, one that never
            comes, a prepared mixture that is damaged, or one that stands in the place of another.
    """
    if problems := list(check_mixture(data)):
        raise ValueError("; ".join(problems))
    weights = _weights(data)
    if data.mixture and (file := Path(data.source).expanduser() / MIXTURE).is_file():
        inner = _read_mixture(file)
        made = {entry["source"]: entry["weight"] for entry in inner}
        if _shares(made) != _shares(dict(data.mixture)):
            raise ValueError(
                f"{data.source} was prepared of the mixture {tuple(made.items())}, data.mixture is "
                f"{data.mixture}: prepare it anew, or set data.mixture = () to train on it as it is"
            )
        places = {entry["source"]: file.parent / entry["folder"] for entry in inner}
        entries = [Entry(str(place), weights[name], place) for name, place in places.items()]
    else:
        entries = [entry for name in weights for entry in _entries(name, weights[name])]
    if len({entry.source for entry in entries}) < len(entries):
        raise ValueError("data.mixture: a source is there twice")
    if never := [entry.source for entry in entries if not any(entry.weights)]:
        raise ValueError(
            f"{never[0]!r} has weight 0 from beginning to end; leave data.mixture and its schedule "
            "in the config if that is where it comes in, or prepare without it"
        )
    for weights_then in zip(*(entry.weights for entry in entries), strict=True):
        if problems := list(check_ratio("data.mixture, with prepared ones in it,", weights_then)):
            raise ValueError(problems[0])
    whole = np.sum([entry.weights for entry in entries], axis=0)
    return [entry._replace(weights=tuple((entry.weights / whole).tolist())) for entry in entries]


def _weights(data: Data) -> dict[str, tuple[float, ...]]:
    """What the section says of every source: its weight in each stretch."""
    if not data.mixture:
        return {data.source: (1.0,)}
    first = tuple(weight for _, weight in data.mixture)
    stretches = zip(first, *(weights for _, weights in data.mixture_schedule), strict=True)
    return dict(zip((source for source, _ in data.mixture), stretches, strict=True))


def _entries(source: str, weights: tuple[float, ...]) -> Iterator[Entry]:
    """A source, or those of a prepared mixture, among which its weight is divided."""
    folder = Path(source).expanduser()
    if not (folder / MIXTURE).is_file():
        yield Entry(source, weights, folder if folders.is_prepared(folder) else None)
        return
    inner = _read_mixture(folder / MIXTURE)
    whole = sum(entry["weight"] for entry in inner)
    for entry in inner:
        place = folder / entry["folder"]
        yield Entry(str(place), tuple(w * entry["weight"] / whole for w in weights), place)


def subfolder(number: int, source: str) -> str:
    """The name of a source's folder in a prepared mixture."""
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(source).name)
    return f"{number}-{name[:40]}"


def _shares(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights as shares, rounded as far as two ways to write them may differ."""
    return {source: round(weight / sum(weights.values()), 9) for source, weight in weights.items()}


def _read_mixture(file: Path) -> list[dict[str, Any]]:
    """Entries with `folder`, `source` and `weight`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kinds = {"folder": str, "source": str, "weight": float}
        sources = [
            {name: kind(entry[name]) for name, kind in kinds.items()}
            for entry in content["sources"]
        ]
        if not 0 < sum(entry["weight"] for entry in sources) < math.inf:
            raise ValueError("no source has a weight")
        return sources
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: {error!r}; prepare it again") from None


def write_mixture(out: Path, entries: list[Entry]) -> None:
    """Makes the folder above prepared sources a source itself."""
    content = [
        {"folder": subfolder(i, entry.source), "source": entry.source, "weight": entry.weight}
        for i, entry in enumerate(entries)
    ]
    with atomic_path(out / MIXTURE) as scratch:
        scratch.write_text(json.dumps({"sources": content}, indent=1) + "\n", encoding="utf-8")
