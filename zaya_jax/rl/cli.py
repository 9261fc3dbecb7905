"""Runs a stage of reinforcement learning in a run directory, and resumes the one that is there.

A stage that was stopped or killed goes on from its last checkpoint, by the same command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zaya_jax import options


def define_flags() -> None:
    """See `zaya_jax.options`."""
    options.config()
    options.workdir()
    options.json()


def main(argv: Sequence[str]) -> int:
    """Returns 0 when all was done, 128 + the signal's number when one stopped the run."""
    settings, folder = options.require("config"), Path(options.require("workdir"))
    from zaya_jax import load  # not above: `--help` needs no jax
    from zaya_jax.rl import loop, record

    result = loop.run(load.experiment(settings), folder)
    options.write_json(
        {
            "workdir": str(result.folder),
            "step": result.step,
            "heldout_accuracy": result.accuracy,
        }
    )
    if result.interrupted is not None:
        return 128 + int(result.interrupted)
    print(f"done: {folder}")
    print(f"  python launch.py generate --model={folder} --prompt='...'")
    print(f"  read rollouts in {folder / record.ROLLOUTS}")
    return 0
