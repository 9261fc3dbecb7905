"""Finds the answer in a response: `\\boxed{}`, `<answer>` tags, or a block of code.

Each function reads its text once, whatever is in it: responses are long, and written by nobody who
cares how hard they are to read.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from zaya_jax.errors import UserError, hint

Kind = Literal["boxed", "answer", "code", "auto"]
KINDS: tuple[Kind, ...] = get_args(Kind)

THINK = ("<think>", "</think>")
"""As `zaya_jax.data.messages` has them, which brings jax along: worker processes need none."""

FORMATS = {
    "boxed": "Give the final answer in \\boxed{}.",
    "answer": "Give the final answer between <answer> and </answer>.",
    "code": "Give the final program in one block of code, fenced by ```.",
    "auto": "Give the final answer in \\boxed{}, or in the form that the problem asks for.",
}
"""How a prompt asks for an answer of each kind."""

_BRACES = re.compile(r"\\boxed\s*\{|\\fbox\s*\{|\\[{}\\]|[{}]")
_BARE_BOX = re.compile(r"\\boxed\s+([^\s{}$\\]+)")
_FINAL = re.compile(r"final answer(?: is)?\s*:?\s*(?:\*\*)?\s*([^\n]+)", re.IGNORECASE)
_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[ \t]*([\w+#.-]*)[^\n]*$", re.MULTILINE)


def extract(text: str, kind: Kind = "auto", *, thinking: bool = False) -> str | None:
    """The answer that a response gives; None if it gives none.

    Args:
      text: the response, think tags and all. An answer counts only where the model has done
        thinking: see `final_text`.
      kind: `boxed`: the last `\\boxed{}`. `answer`: the last `<answer>...</answer>`, or else what
        stands behind the last "Final answer:". `code`: the last fenced block. `auto`: the first
        that is there of tags, box, and "Final answer:".
      thinking: whether the prompt has opened the think block already.

    Raises:
      UserError: an unknown kind.
    """
    text = final_text(text, thinking=thinking)
    match kind:
        case "boxed":
            found = boxed(text)
        case "answer":
            found = tagged(text) or announced(text)
        case "code":
            found = code(text)
        case "auto":
            found = tagged(text) or boxed(text) or announced(text)
        case _:
            raise UserError(f"answer kind {kind!r}{hint(str(kind), KINDS)}")
    return found or None


def final_text(text: str, *, thinking: bool = False) -> str:
    """What stands behind the last `</think>`.

    Without one: everything, or nothing if a think block was opened and never closed.
    """
    _, closed, after = text.rpartition(THINK[1])
    if closed:
        return after
    return "" if thinking or THINK[0] in text else text


def boxed(text: str) -> str | None:
    """What is in the last `\\boxed{}` (or `\\fbox{}`) whose braces pair up.

    A box in a box is opened. Without any braces, what follows a `\\boxed` and a space.
    """
    opened: list[int | None] = []  # for each open brace: where the content of a box begins
    found: str | None = None
    for token in _BRACES.finditer(text):
        if token[0] == "{":
            opened.append(None)
        elif token[0].endswith("{") and len(token[0]) > 2:
            opened.append(token.end())
        elif token[0] == "}" and opened:
            start = opened.pop()
            if start is not None:
                found = text[start : token.start()].strip()
    if found is None:
        bare = _BARE_BOX.findall(text)
        return bare[-1].rstrip(".,;:") if bare else None
    while found.startswith(("\\boxed", "\\fbox")) and found.endswith("}"):
        inner = found.partition("{")[2][:-1].strip()
        if inner == found:
            break
        found = inner
    return found


def tagged(text: str) -> str | None:
    """What is in the last `<answer>...</answer>`."""
    stop = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(stop, 0))
    return text[start + len("<answer>") : stop].strip() if start >= 0 else None


def announced(text: str) -> str | None:
    """The rest of the line behind the last "Final answer:"."""
    found = _FINAL.findall(text)
    return found[-1].lstrip("*$ ").rstrip("*$ .") if found else None


def code(text: str) -> str | None:
    """The last block of code between fences; one that is not closed does not count."""
    opened: re.Match | None = None
    found: str | None = None
    for fence in _FENCE.finditer(text):
        if opened is None:
            opened = fence
        elif fence[1].startswith(opened[1]) and not fence[2]:
            found = text[opened.end() : fence.start()].strip("\n")
            opened = None
    return found
