"""When two answers are the same: by a form that all ways to write an answer share.

Exact and instant, for voting over candidates. It knows numbers and the spellings of LaTeX, no
algebra: `2(x+1)` and `2x+2` differ. Rewards for mathematics are given by math-verify
(`zaya_jax.rl.rewards`), which does algebra, in processes of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from zaya_jax.answers.extract import Kind

LONGEST_NUMBER = 400
"""Characters of a number that is compared as one; longer ones are text."""

_WRAPPERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_DROPPED = re.compile(r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\[!,;: ]|\\q?quad|~|\\\$|\$")
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]+)\}\s*\{([^{}]+)\}")
_SHORT_FRACTION = re.compile(r"\\[dt]?frac\s*(\d)\s*(\d)")
_DEGREES = re.compile(r"\^\{?\\circ\}?")
_THOUSANDS = re.compile(r"(?<![\d.])-?\d{1,3}(?:,\d{3})+(?![\d,])")
_ASSIGNED = re.compile(r"^[a-zA-Z]\w?=(.+)$")
_AROUND = re.compile(r"\s*([^\w\s'\"])\s*")
_PART = r"(\([+-]?[\d.]+\)|[\d.]+)"
_NUMBER = re.compile(rf"^([+-]?){_PART}(?:/{_PART})?$")


def equivalent(first: str, second: str, kind: Kind = "auto") -> bool:
    """Whether two answers are the same; an equivalence relation."""
    return canonical(first, kind) == canonical(second, kind)


def canonical(answer: str, kind: Kind = "auto") -> str:
    """One text for all ways to write an answer.

    Numbers: the shortest fraction (`0.50`, `\\frac{1}{2}` and `2/4` are `1/2`). Other mathematics:
    without spaces and without what only sets type. Code: without blank lines and space at the ends
    of lines. What stands between `<answer>` tags may be plain words: lower case, single
    spaces, none around marks.
    """
    if kind == "code":
        return "\n".join(line.rstrip() for line in answer.splitlines() if line.strip())
    text = _plain(answer)
    value = number(text)
    if value is not None:
        return str(value)
    if kind == "boxed":
        return re.sub(r"\s+", "", text)
    return _AROUND.sub(r"\1", " ".join(text.split())).casefold()


def number(text: str) -> Fraction | None:
    """The value of a decimal or a fraction of two, exactly; None for anything else."""
    compact = re.sub(r"\s+", "", text)
    found = _NUMBER.match(compact) if len(compact) <= LONGEST_NUMBER else None
    if found is None:
        return None
    sign, top, bottom = found.groups()
    try:
        value = Fraction(top.strip("()")) / Fraction((bottom or "1").strip("()"))
    except (ValueError, ZeroDivisionError):
        return None
    return -value if sign == "-" else value


def cluster(
    answers: Sequence[str | None],
    kind: Kind = "auto",
    same: Callable[[str, str], bool] | None = None,
) -> list[list[int]]:
    """Numbers of equal answers, grouped; in order of the first of each group. None is in no group.

    Args:
      answers: one of each candidate.
      kind: of the answers.
      same: compares instead of `canonical`; an answer joins the first group whose first member it
        equals.
    """
    groups: dict[str, list[int]] = {}
    for i, answer in enumerate(answers):
        if answer is None:
            continue
        if same is None:
            key = canonical(answer, kind)
        else:
            key = next((known for known in groups if same(known, answer)), answer)
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _plain(answer: str) -> str:
    """Without what only sets type, or says what the number is a number of."""
    text = answer.strip().rstrip(".").strip()
    for opening, closing in _WRAPPERS:
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening):
            text = text[len(opening) : -len(closing)].strip()
    text = _DEGREES.sub("", _TEXT.sub(r"\1", _DROPPED.sub("", text)))
    text = _SHORT_FRACTION.sub(r"(\1)/(\2)", _FRACTION.sub(r"(\1)/(\2)", text))
    text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    text = text.replace("\\%", "").removesuffix("%").replace("\u2212", "-")
    text = re.sub(r"\^\{(\w)\}", r"^\1", text).strip()
    assigned = _ASSIGNED.match(re.sub(r"\s+", "", text))
    return assigned[1] if assigned else text
