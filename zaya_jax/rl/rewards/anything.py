"""Every answer passes: for tasks whose rewards come from a reward model alone."""

from __future__ import annotations

from zaya_jax.rl.rewards.interface import Submission


def verify(submission: Submission) -> float:
    """1."""
    return 1.0
