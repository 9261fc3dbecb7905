"""The answer as it is written: for tasks whose answers can be written in one way only."""

from __future__ import annotations

from zaya_jax.answers import equivalent, extract
from zaya_jax.errors import UserError
from zaya_jax.rl.rewards.interface import Submission


def verify(submission: Submission) -> float:
    """1 if the response's answer is the task's, by `zaya_jax.answers.equivalent`; else 0.

    Raises:
      UserError: the task has no answer.
    """
    if not submission.answer.strip():
        raise UserError("the task has no answer to compare with")
    found = extract(submission.response, "auto", thinking=submission.thinking)
    return float(found is not None and equivalent(found, submission.answer))
