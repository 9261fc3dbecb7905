"""Mathematics by algebra: `2(x+1)` is `2x+2`. Runs math-verify, which needs an extra.

Meant for a worker process: sympy may take forever on a few characters, and math-verify's own time
limit works by signals, which only a main thread gets.
"""

from __future__ import annotations

import importlib

from zaya_jax.answers import extract
from zaya_jax.errors import UserError
from zaya_jax.rl.rewards.interface import Submission


def verify(submission: Submission) -> float:
    """1 if what is in the response's last `\\boxed{}` equals the task's answer; else 0.

    Raises:
      UserError: math-verify is not installed, or the task's answer cannot be read as mathematics.
    """
    try:
        library = importlib.import_module("math_verify")
    except ModuleNotFoundError:
        raise UserError(
            "the verifier 'math' needs math-verify: pip install -r requirements-rl.txt"
        ) from None
    gold = library.parse(_boxed(submission.answer), parsing_timeout=None)
    if not gold:
        raise UserError(f"the task's answer {submission.answer!r:.60} is no mathematics")
    found = extract(submission.response, "boxed", thinking=submission.thinking)
    if found is None:
        return 0.0
    answer = library.parse(_boxed(found), parsing_timeout=None)
    return float(bool(answer) and library.verify(gold, answer, timeout_seconds=None))


def _boxed(answer: str) -> str:
    return answer if "\\boxed" in answer else f"\\boxed{{{answer.strip().strip('$')}}}"
