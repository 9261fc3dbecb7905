"""What a stage leaves in its run directory to be read, beside `metrics.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path

from zaya_jax.data.cache import atomic_path
from zaya_jax.errors import UserError

ROLLOUTS = "rollouts.jsonl"
"""One group of each logged update: prompt, responses, rewards."""
TASKS = "tasks.json"
"""A hash of what is asked and held out: a stage that goes on asks the same."""


def trim(folder: Path, step: int) -> None:
    """Removes rollouts of later updates, which are done again, and lines that were cut off."""
    file = folder / ROLLOUTS
    if not file.exists():
        return
    kept = [line for line in file.read_text().splitlines() if 0 < _step(line) <= step]
    with atomic_path(file) as scratch:
        scratch.write_text("".join(f"{line}\n" for line in kept))


def _step(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0


def same_tasks(folder: Path, fingerprint: str, *, new: bool) -> None:
    """Notes what a stage asks, or compares it with what it asked before.

    Raises:
      UserError: files of tasks, or a package that makes them, have changed since.
    """
    file = folder / TASKS
    if new or not file.exists():
        with atomic_path(file) as scratch:
            scratch.write_text(json.dumps({"sha256": fingerprint}))
    elif json.loads(file.read_text()).get("sha256") != fingerprint:
        raise UserError(
            f"{folder}: rl.tasks are not what they were when the stage began (a file was changed, "
            "or a package): what is held out now may have been learnt from. Put them back, or "
            "begin in another --workdir"
        )
