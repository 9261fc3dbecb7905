"""A process that trains nothing: it takes a run up, adds numbers to its state, and saves.

Run as a program it says what it has found and read, as one JSON line, if it is process 0. Nothing
is compiled, so that it can be started often.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from contextlib import closing
from pathlib import Path

import jax
import numpy as np

from tests.data.in_memory import pack, text
from tests.parallel.started import tiny
from zaya_jax.cluster import Member
from zaya_jax.config import Experiment
from zaya_jax.data.mixture import Batches, join
from zaya_jax.parallel import layout as layout_of
from zaya_jax.parallel.processes import Alone, session
from zaya_jax.train import state as train_state
from zaya_jax.train.checkpoint import Checkpoints
from zaya_jax.train.state import TrainState


def values(experiment: Experiment, step: int) -> TrainState:
    """The state at a step: numbers that differ in every place, of every leaf, at every step."""
    wanted = train_state.abstract(experiment)
    leaves, structure = jax.tree.flatten(wanted)
    made = [
        (np.arange(leaf.size).reshape(leaf.shape) % 251 + 1000 * step + number).astype(leaf.dtype)
        for number, leaf in enumerate(leaves)
    ]
    found = jax.tree.unflatten(structure, made)
    scalar = np.asarray(step, np.int32)
    return dataclasses.replace(found, step=scalar, cursor=scalar)


def batches() -> Batches:
    """Of a mixture, 12 rows each."""
    sources = [
        pack([text(range(at + 7 * i, at + 7 * i + 5)) for i in range(30)], 8, "best_fit")
        for at in (10, 5000)
    ]
    return Batches(join(sources), 12, 3, (2, 1), ((3, (1, 3)),))


def run(folder: Path, devices: int, steps: int, group: Alone) -> dict:
    """From the newest checkpoint on, so many steps, each saved.

    Returns:
      `found`: the step that was restored, or None. `wrong`: leaves that did not have their values.
      `rows`: for each step, the first token of every row of its batch, as this process's devices
      have them (None for what others have).
    """
    experiment = dataclasses.replace(tiny(folder), mesh=f"data={devices}" if devices > 1 else "")
    layout, data = layout_of(experiment), batches()
    told: dict = {"found": None, "wrong": [], "rows": []}
    with closing(Checkpoints(folder, experiment, layout, group)) as checkpoints:
        state = checkpoints.restore()
        step = 0 if state is None else int(state.cursor)
        if state is not None:
            told["found"] = int(state.step)
            expected = jax.tree_util.tree_leaves_with_path(values(experiment, step))
            for (path, wanted), leaf in zip(expected, jax.tree.leaves(state), strict=True):
                for shard in leaf.addressable_shards:
                    if not np.array_equal(shard.data, wanted[shard.index]):
                        told["wrong"].append(jax.tree_util.keystr(path))
        for _ in range(steps):
            batch = layout.load(data, step)
            rows: list[int | None] = [None] * 12
            order = layout.rows(12) if hasattr(layout, "rows") else np.arange(12)
            for shard in batch.tokens.addressable_shards:
                places = order[shard.index[0]] if devices > 1 else order
                for row, token in zip(places, np.asarray(shard.data)[:, 0], strict=True):
                    rows[int(row)] = int(token)
            told["rows"].append(rows)
            step += 1
            checkpoints.save(layout.place(values(experiment, step)))
    return told


def main(folder: str, coordinator: str, count: str, index: str, steps: str) -> None:
    """As process `index` of `count`, with one device each."""
    many, own = int(count), int(index)
    member = Member(coordinator, many, own, None, "a test") if many > 1 else None
    with session(member, connect_seconds=600, lost_seconds=300) as group:
        told = run(Path(folder), many, int(steps), group)
        everybody = [json.loads(one) for one in group.gather(json.dumps(told))]
    if own == 0:
        print("TOLD " + json.dumps(everybody), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
