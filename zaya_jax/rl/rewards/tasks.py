"""Tasks from files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zaya_jax.config.kinds import check_kind
from zaya_jax.data.readers import objects
from zaya_jax.errors import UserError
from zaya_jax.rl.rewards.interface import VERIFIERS, Task


def read_tasks(path: Path, verifier: str | None = None) -> Iterator[Task]:
    """Tasks of a JSONL file (plain, .gz or .zst), one `{prompt, answer, ...}` a line.

    `verifier` may be given in a line; `metadata`, `source` and `name` too, the file's name and the
    line's number standing in for the last two. Empty lines are passed over.

    Args:
      path: the file.
      verifier: of lines that name none.

    Raises:
      UserError: a line that is no such object; names file, line and field.
      FileNotFoundError: there is no such file.
    """
    for where, number, row in objects(path):
        chosen = row.get("verifier", verifier)
        if chosen is None:
            raise UserError(f"{where}: no verifier; name one of {', '.join(VERIFIERS)}")
        for mistake in check_kind("verifier", str(chosen), VERIFIERS):
            raise UserError(f"{where}: {mistake}")
        metadata = row.get("metadata", {})
        if not isinstance(metadata, dict):
            raise UserError(f"{where}: metadata is a {type(metadata).__name__}; expected an object")
        yield Task(
            prompt=_text(row, "prompt", where),
            answer=_text(row, "answer", where),
            verifier=str(chosen),
            source=str(row.get("source", path.name)),
            name=str(row.get("name", number)),
            metadata=metadata,
        )


def _text(row: Mapping[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if field == "answer" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        there = "there is none" if field not in row else f"it is {value!r:.60}"
        raise UserError(f"{where}: {field} must be text, and {there}")
    return value
