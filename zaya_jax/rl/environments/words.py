"""How environments put things to a model, and read what it answers."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from zaya_jax.rl.environments import schema as schemas
from zaya_jax.rl.environments.seeds import Seed

MOST_LITERAL = 10_000
"""Characters of a value that are read; a longer one is no answer."""


class Unreadable(ValueError):
    """An answer that is no value."""


def literal(text: str) -> Any:
    """A Python value, as it is written.

    Raises:
      Unreadable: it is none, or too long.
    """
    if len(text) > MOST_LITERAL:
        raise Unreadable("too long")
    try:
        return ast.literal_eval(_bare(text))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise Unreadable(str(error)) from None


def arguments(text: str, count: int) -> list[Any]:
    """Arguments separated by commas, as in a call.

    Raises:
      Unreadable: they are none, or not so many.
    """
    found = literal(f"({_bare(text)},)")
    if len(found) != count:
        raise Unreadable(f"{len(found)} arguments, not {count}")
    return list(found)


def shown(entry: str | None, value: Any) -> str:
    """An output: a value as Python writes it, a text in a block."""
    return f"```\n{value.rstrip()}\n```" if entry is None else f"`{value!r}`"


def shown_input(entry: str | None, given: Any) -> str:
    """An input: a call, or a text in a block."""
    if entry is None:
        return shown(None, given)
    return f"`{entry}({', '.join(map(repr, given))})`"


def example(entry: str | None, given: Any, output: Any) -> str:
    """An input and what comes out."""
    if entry is None:
        return f"Input:\n{shown(None, given)}\nOutput:\n{shown(None, output)}"
    return f"{shown_input(entry, given)[:-1]} == {output!r}`"


def examples(entry: str | None, tests: Sequence[tuple[Any, Any]]) -> str:
    """Some of them."""
    return "\n".join(example(entry, given, output) for given, output in tests)


def form(seed: Seed) -> str:
    """What a program for this problem has to be."""
    if seed.entry is None:
        return "Write a Python program that reads the input from standard input and prints."
    takes = ""
    if seed.schema is not None:
        takes = " It takes " + ", and ".join(map(schemas.describe, seed.schema)) + "."
    return f"Write a Python function named `{seed.entry}`.{takes}"


def valid(schema: Sequence[schemas.Schema] | None) -> str:
    """Which inputs are valid, if a schema tells."""
    if schema is None:
        return ""
    return "A valid input is " + ", and ".join(map(schemas.describe, schema)) + ".\n"


def can_be_given(given: Any) -> bool:
    """Whether an input survives being an answer: a text loses spaces and lines around it."""
    return not isinstance(given, str) or given in (given.strip(), given.strip() + "\n")


def _bare(text: str) -> str:
    """Without the fence or the quotes of code around it."""
    text = text.strip()
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text.partition("\n")[2][:-3]
    return text.strip().strip("`").strip()
