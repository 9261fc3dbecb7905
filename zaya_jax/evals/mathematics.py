"""Mathematics in the format of AIME, HMMT and APEX: a problem and its answer."""

from __future__ import annotations

from pathlib import Path

from zaya_jax.answers import FORMATS
from zaya_jax.evals import contamination, rows
from zaya_jax.rl.rewards.interface import Task

PROBLEM, ANSWER, NAME = ("problem", "question", "prompt"), ("answer", "expected_answer"), "id"


def load(path: Path) -> list[Task]:
    """Tasks of a JSONL file, compared by math-verify.

    A row has its text in `problem`, `question` or `prompt`, its answer in `answer` or
    `expected_answer`, and may have an `id`.

    Raises:
      UserError: a malformed row.
    """
    tasks = []
    for row in rows.read(path):
        problem = row.text(*PROBLEM).strip()
        tasks.append(
            Task(
                prompt=f"{problem}\n\n{FORMATS['boxed']}",
                answer=row.text(*ANSWER).strip(),
                verifier="math",
                source=path.stem.removesuffix(".jsonl"),
                name=row.optional(NAME, str(row.number)),
                metadata={contamination.PROBLEM: problem},
            )
        )
    return tasks
