"""Seeds from files and to files. Apart from `seeds`, since verifiers need none of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from zaya_jax.data.cache import atomic_path
from zaya_jax.data.readers import objects
from zaya_jax.errors import UserError
from zaya_jax.rl.environments.seeds import Seed


def read(path: Path) -> Iterator[Seed]:
    """Seeds of a JSONL file (plain, .gz or .zst), one a line; empty lines are passed over.

    Raises:
      UserError: a line that is none; names file, line and field.
      FileNotFoundError: there is no such file.
    """
    names: set[str] = set()
    for where, _, record in objects(path):
        seed = Seed.parse(record, where)
        if seed.name in names:
            raise UserError(f"{where}: there is another seed named {seed.name!r}")
        names.add(seed.name)
        yield seed


def write(seeds: Iterable[Seed], path: Path) -> int:
    """Writes seeds as `read` reads them, and tells how many. The file is there when it is whole."""
    count = 0
    with atomic_path(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        for seed in seeds:
            file.write(json.dumps(seed.record(), ensure_ascii=False) + "\n")
            count += 1
    return count
