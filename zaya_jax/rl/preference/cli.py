"""Trains a model of rewards from preference pairs, and resumes the one that is there.

Prints how many held-out pairs it orders right, beside what their lengths alone would order."""

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
    from zaya_jax.rl.preference import train

    result = train.run(load.experiment(settings), folder)
    options.write_json(
        {
            "workdir": str(result.folder),
            "step": result.step,
            "heldout_accuracy": result.accuracy,
            "heldout_by_length": result.by_length,
        }
    )
    if result.interrupted is not None:
        return 128 + int(result.interrupted)
    print(f"done: {folder}")
    print(f"  python launch.py rl ... --config.rl.reward_model={folder}")
    return 0
