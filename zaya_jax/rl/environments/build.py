"""Builds tasks from seeds, for every environment that can be built from them."""

from __future__ import annotations

import dataclasses
import json
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from zaya_jax.data.cache import atomic_path
from zaya_jax.errors import UserError, hint
from zaya_jax.rl.environments import codearc, codeio, falsification, standard
from zaya_jax.rl.environments.seeds import Seed, mistakes
from zaya_jax.rl.rewards.interface import Task
from zaya_jax.sandbox import require
from zaya_jax.sandbox.judge import PerTest

LIMITS = PerTest(seconds=2.0)
"""Of a seed's own programs, while its claims are tried."""
Builder = Callable[[Seed, np.random.Generator], Iterator[Task]]
ENVIRONMENTS: Mapping[str, Builder] = {
    standard.NAME: standard.tasks,
    codeio.OUTPUT: codeio.output_tasks,
    codeio.INPUT: codeio.input_tasks,
    codearc.NAME: codearc.tasks,
    falsification.NAME: falsification.tasks,
}


def tasks(seeds: Iterable[Seed], environments: Sequence[str], *, seed: int) -> Iterator[Task]:
    """Tasks of some environments, seed by seed; a seed's do not depend on the others.

    A seed that does not keep what it says is left out, and told of on standard error.

    Args:
      seeds: what they are made of.
      environments: names of `ENVIRONMENTS`.
      seed: of all draws.

    Raises:
      UserError: an unknown environment; no sandbox.
    """
    for name in environments:
        if name not in ENVIRONMENTS:
            raise UserError(f"no code environment {name!r}{hint(name, ENVIRONMENTS)}")
    require()
    for source in seeds:
        if wrong := mistakes(source, LIMITS):
            print(f"seed {source.name!r} is left out: {'; '.join(wrong[:3])}", file=sys.stderr)
            continue
        for name in environments:
            draws = (seed, zlib.crc32(source.name.encode()), zlib.crc32(name.encode()))
            yield from ENVIRONMENTS[name](source, np.random.default_rng(draws))


def write(made: Iterable[Task], path: Path) -> Counter[str]:
    """Writes tasks as `zaya_jax.rl.rewards.tasks` reads them; how many of each environment.

    The file is there when it is whole.
    """
    counts: Counter[str] = Counter()
    with atomic_path(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        for task in made:
            file.write(json.dumps(dataclasses.asdict(task), ensure_ascii=False) + "\n")
            counts[task.source] += 1
    return counts
