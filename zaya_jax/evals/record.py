"""Answers on disk: one line each, so that an evaluation that was stopped goes on where it was."""

from __future__ import annotations

import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any

from zaya_jax.errors import UserError
from zaya_jax.evals.client import Answer

Answers = Mapping[str, Mapping[int, Answer]]
"""By task and number of the sample."""


class Record:
    """A file of answers that grows. A context manager: leaving it closes the file."""

    def __init__(self, path: Path):
        """Opens or makes the file; a last line that was cut off is cut away.

        Raises:
          UserError: it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("ab+")
            self._file.seek(0)
            data = self._file.read()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                self._file.truncate(whole)
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise UserError(f"{path}: cannot write there: {error.strerror}") from None

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, task: str, sample: int, answer: Answer) -> None:
        """Writes an answer; it is there when this returns."""
        row = {"task": task, "sample": sample, **dataclasses.asdict(answer)}
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()


def read(path: Path, tasks: Collection[str]) -> Answers:
    """Answers of a file; none if there is no file.

    A row is `{task, response}`, and may have `sample` (else they are counted), `finish`, `tokens`,
    `seconds`, `refused`: what `Record` writes, or what somebody else recorded.

    Raises:
      UserError: a line that is none, or about no task of the set; names it.
    """
    found: dict[str, dict[int, Answer]] = defaultdict(dict)
    if not path.exists():
        return found
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row: Any = json.loads(line)
            task, response = str(row["task"]), row["response"]
            sample = int(row.get("sample", len(found[task])))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(f"{where}: no answer {{task, response}}: {error!r:.80}") from None
        if not isinstance(response, str):
            raise UserError(f"{where}: response is {response!r:.60}; it must be text")
        if task not in tasks:
            raise UserError(f"{where}: the set has no task {task!r:.60}")
        tokens, refused = row.get("tokens"), row.get("refused")
        found[task][sample] = Answer(
            response=response,
            finish=str(row.get("finish", "unknown")),
            tokens=tokens if isinstance(tokens, int) else None,
            seconds=float(row.get("seconds") or 0.0),
            refused=None if refused is None else str(refused),
        )
    return {task: answers for task, answers in found.items() if answers}
