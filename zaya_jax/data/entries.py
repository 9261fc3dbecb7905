"""Which sources a config names: one, a weighted mixture, or what was prepared of either.

`launch.py data --out=DIR` gives every source of a mixture a folder in DIR, and DIR a file that
names them with their weights; DIR is then a source like any other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from zaya_jax.config.schema import Data
from zaya_jax.data import folders
from zaya_jax.data.cache import atomic_path

MIXTURE = "mixture.index.json"
"""Names the prepared folders beside it, with their weights; a folder with one is a source."""


class Entry(NamedTuple):
    """One source of a mixture: its name, its share of the rows, and its folder if prepared."""

    source: str
    weight: float
    folder: Path | None


def resolve(data: Data) -> list[Entry]:
    """The sources of a section with their shares; prepared mixtures give their own sources.

    What `launch.py data` made of a mixture may be named by `data.source` with the mixture still in
    the config, and stands in its place.

    Raises:
        ValueError: a weight that is not positive, the same source twice, a prepared mixture that
            is damaged, or one that stands in the place of another.
    """
    entries: list[Entry] = []
    sources = data.mixture or ((data.source, 1.0),)
    if data.mixture and (file := Path(data.source).expanduser() / MIXTURE).is_file():
        made = tuple((entry["source"], entry["weight"]) for entry in _read_mixture(file))
        if _shares(made) != _shares(data.mixture):
            raise ValueError(
                f"{data.source} was prepared of the mixture {made}, data.mixture is "
                f"{data.mixture}: prepare it anew, or set data.mixture = () to train on it as it is"
            )
        sources = ((data.source, 1.0),)
    for source, weight in sources:
        if not 0 < weight < math.inf:
            raise ValueError(f"data.mixture: {source!r} has weight {weight}: expected more than 0")
        folder = Path(source).expanduser()
        if (folder / MIXTURE).is_file():
            inner = _read_mixture(folder / MIXTURE)
            whole = sum(entry["weight"] for entry in inner)
            for entry in inner:
                place = folder / entry["folder"]
                entries.append(Entry(str(place), weight * entry["weight"] / whole, place))
        else:
            entries.append(Entry(source, weight, folder if folders.is_prepared(folder) else None))
    if len({entry.source for entry in entries}) < len(entries):
        raise ValueError("data.mixture: a source is there twice")
    whole = sum(entry.weight for entry in entries)
    return [entry._replace(weight=entry.weight / whole) for entry in entries]


def subfolder(number: int, source: str) -> str:
    """The name of a source's folder in a prepared mixture."""
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(source).name)
    return f"{number}-{name[:40]}"


def _shares(sources: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Weights as shares, rounded as far as two ways to write them may differ."""
    weights = dict(sources)
    return {source: round(weight / sum(weights.values()), 9) for source, weight in weights.items()}


def _read_mixture(file: Path) -> list[dict[str, Any]]:
    """Entries with `folder`, `source` and `weight`."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        kinds = {"folder": str, "source": str, "weight": float}
        return [
            {name: kind(entry[name]) for name, kind in kinds.items()}
            for entry in content["sources"]
        ]
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
