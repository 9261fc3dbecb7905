"""Rows of evaluation files, and their mistakes told with file and line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zaya_jax.errors import UserError


class Row:
    """One object of a JSONL file.

    Attributes:
      fields: what it holds.
      where: file and line, for messages.
      number: of the line, from 1.
    """

    def __init__(self, fields: Mapping[str, Any], where: str, number: int):
        self.fields, self.where, self.number = fields, where, number

    def text(self, *names: str) -> str:
        """The first of these fields that is there, which must be text.

        Raises:
          UserError: none is, or it is something else.
        """
        for name in names:
            value = self.fields.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                value = str(value)
            if isinstance(value, str) and value.strip():
                return value
            if value is not None:
                raise UserError(f"{self.where}: {name} is {value!r:.60}; it must be text")
        raise UserError(f"{self.where}: there is no {' or '.join(names)}")

    def optional(self, name: str, default: str = "") -> str:
        """A field that may be missing; as text."""
        value = self.fields.get(name)
        return default if value is None else str(value)

    def texts(self, name: str, least: int = 1) -> list[str]:
        """A list of texts.

        Raises:
          UserError: it is none, or has fewer.
        """
        value = self.fields.get(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UserError(f"{self.where}: {name} is {value!r:.60}; it must be a list of texts")
        if len(value) < least:
            raise UserError(
                f"{self.where}: {name} has {len(value)} entries; at least {least} wanted"
            )
        return value

    def mistake(self, message: str) -> UserError:
        """An error about this row."""
        return UserError(f"{self.where}: {message}")


def read(path: Path) -> Iterator[Row]:
    """Rows of a JSONL file (plain, .gz or .zst); empty lines are passed over.

    Raises:
      UserError: there is no such file; a line that is no object.
    """
    # Verifiers in worker processes import this module, and need neither files nor jax.
    from zaya_jax.data.readers import objects

    try:
        for where, number, fields in objects(path):
            yield Row(fields, where, number)
    except OSError as error:
        raise UserError(f"evaluation set {path}: {error.strerror or error}") from None
