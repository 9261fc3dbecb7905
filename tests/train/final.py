"""Where a run has come to."""

from __future__ import annotations

from zaya_jax.train.checkpoint import Checkpoints


def final_state(folder, experiment):
    """The state in the newest checkpoint of a run directory."""
    checkpoints = Checkpoints(folder, experiment)
    try:
        return checkpoints.restore()
    finally:
        checkpoints.close()
