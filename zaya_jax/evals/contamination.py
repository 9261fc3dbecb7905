"""Are evaluation prompts in the training data? By equal texts and by runs of words.

A prompt is found if the training data holds all of it, or at least half of its runs of n words. A
run that many evaluation prompts share is their form, not their content, and does not count.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from zaya_jax.errors import UserError

RUN = 13
"""Words in a row (Brown et al., 2020, use as many)."""
SHARE = 0.5
COMMON = 0.05
"""A run in more than this share of the evaluation prompts, and in more than two, is form."""
_WORD = re.compile(r"\w+")
Run = tuple[str, ...]
PROBLEM = "problem"
"""In a task's metadata: what training data must not hold, where its prompt says more than that."""


@dataclasses.dataclass(frozen=True)
class Overlap:
    """An evaluation prompt that was found.

    Attributes:
      name: of the task.
      share: of its runs of words that the training data has.
      exact: whether all of its words stand in one training text, in a row.
      where: the training text that showed most of it, by number.
    """

    name: str
    share: float
    exact: bool
    where: int


def overlaps(
    training: Iterable[str], evaluation: Mapping[str, str], run: int = RUN
) -> list[Overlap]:
    """Evaluation prompts that the training data has.

    Args:
      training: texts, read once.
      evaluation: prompts by name.
      run: n, words in a row. A shorter prompt is one run.
    """
    prompts = {name: words(text) for name, text in evaluation.items()}
    index: dict[Run, set[str]] = defaultdict(set)  # which prompts have a run
    begins: dict[Run, list[str]] = defaultdict(list)  # which prompts begin with it
    for name, prompt in prompts.items():
        for number, piece in enumerate(_runs(prompt, run)):
            index[piece].add(name)
            if not number:
                begins[piece].append(name)
    most = max(2, COMMON * len(prompts))
    telling = {name: _telling(prompt, index, run, most) for name, prompt in prompts.items()}
    lengths = sorted({len(piece) for piece in index})
    found: dict[str, set[Run]] = defaultdict(set)
    best: dict[str, tuple[int, int]] = {}  # the most hits in one text, and minus its number
    exact: set[str] = set()
    for number, text in enumerate(training):
        tokens = words(text)
        hits: Counter[str] = Counter()
        for length in lengths:
            for at in range(len(tokens) - length + 1):
                piece = tuple(tokens[at : at + length])
                for name in index.get(piece, ()):
                    if piece in telling[name]:
                        found[name].add(piece)
                        hits[name] += 1
                for name in begins.get(piece, ()):
                    if tokens[at : at + len(prompts[name])] == prompts[name]:
                        exact.add(name)
        for name, count in hits.items():
            best[name] = max(best.get(name, (0, 0)), (count, -number))
    result = []
    for name in prompts:
        share = len(found[name]) / len(telling[name]) if name in found else 0.0
        if name in exact or share >= SHARE:
            result.append(Overlap(name, share, name in exact, -best[name][1]))
    return result


def _telling(prompt: list[str], index: Mapping[Run, set[str]], run: int, most: float) -> set[Run]:
    """The runs of a prompt that are its own, or all if none is."""
    every = set(_runs(prompt, run))
    return {piece for piece in every if len(index[piece]) <= most} or every


def check(
    training: Iterable[str], evaluation: Mapping[str, str], *, force: bool = False, what: str = ""
) -> list[Overlap]:
    """The overlaps, if there are none or they are allowed.

    Args:
      training: texts.
      evaluation: prompts by name.
      force: whether to go on all the same.
      what: the evaluation set, for the message.

    Raises:
      UserError: there are some, and not `force`; names the first.
    """
    found = overlaps(training, evaluation)
    if found and not force:
        named = ", ".join(repr(each.name) for each in found[:3])
        raise UserError(
            f"{len(found)} of {len(evaluation)} prompts of {what or 'the evaluation set'} are in "
            f"the training data, such as {named}: scores on them would say nothing. Leave them out "
            "of one of the two, or pass --force"
        )
    return found


def words(text: str) -> list[str]:
    """The words and numbers of a text, in lower case."""
    return _WORD.findall(text.lower())


def texts(path: Path) -> Iterator[str]:
    """The texts of a training file: of a JSONL's rows all strings in them, else the lines.

    Raises:
      UserError: it cannot be read.
    """
    from zaya_jax.data.readers import lines

    try:
        for line in lines(path):
            text = line.decode("utf-8", "replace")
            try:
                row = json.loads(text) if text.lstrip().startswith("{") else text
            except (ValueError, RecursionError):
                row = text
            yield "\n".join(_strings(row))
    except OSError as error:
        raise UserError(f"training data {path}: {error.strerror or error}") from None


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def _runs(tokens: list[str], run: int) -> Iterator[Run]:
    if not tokens:
        return
    if len(tokens) <= run:
        yield tuple(tokens)
        return
    for at in range(len(tokens) - run + 1):
        yield tuple(tokens[at : at + run])
