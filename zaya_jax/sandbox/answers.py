"""The program in a model's answer."""

from __future__ import annotations

import re

_FENCE = re.compile(
    r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.DOTALL | re.MULTILINE
)
PYTHON = ("python", "py", "python3")


def after_thinking(answer: str) -> str:
    """What stands after the last `</think>`; all of it, if there is none."""
    return answer.rpartition("</think>")[2]


def last_block(answer: str, languages: tuple[str, ...] = PYTHON) -> str | None:
    """The last fenced block of one of these languages after the reasoning.

    Without one, the last that names no language; None if there is none either.
    """
    blocks = [(found[1].lower(), found[2]) for found in _FENCE.finditer(after_thinking(answer))]
    for accepted in (languages, ("",)):
        for language, block in reversed(blocks):
            if language in accepted:
                return block
    return None
