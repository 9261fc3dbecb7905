"""Multiple choice: GPQA's and MMLU-Pro's formats, and the letter in a response.

A letter is looked for in `\\boxed{}` and `<answer>` first, which prompts ask for. Where neither is,
as MMLU-Pro's published scorer does: behind "answer is", behind "Answer:", and else the last capital
that stands alone. Nothing is guessed.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from zaya_jax.answers import extract, final_text
from zaya_jax.evals import contamination, rows
from zaya_jax.rl.rewards.interface import Submission, Task

LETTERS = "ABCDEFGHIJ"
GPQA = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
_ALONE = re.compile(r"\\text\{\s*\(?([A-J])\)?\s*\}|\(?([A-J])\)?[.:)]?(?=\s|$)")


def load_gpqa(path: Path, seed: int = 0) -> list[Task]:
    """Tasks of GPQA's rows: `Question`, `Correct Answer`, `Incorrect Answer 1` to `3`.

    The order of the choices is drawn from the seed and the question, so that neither its place in
    the file nor the other rows matter.

    Raises:
      UserError: a malformed row.
    """
    tasks = []
    for row in rows.read(path):
        question = row.text("Question", "question").strip()
        texts = [row.text(name).strip() for name in GPQA]
        draws = np.random.default_rng((seed, zlib.crc32(question.encode())))
        order = draws.permutation(len(texts)).tolist()
        choices, right = [texts[i] for i in order], order.index(0)
        name = row.optional("Record ID", str(row.number))
        tasks.append(_task("gpqa", name, question, choices, right))
    return tasks


def load_mmlu_pro(path: Path) -> list[Task]:
    """Tasks of MMLU-Pro's rows: `question`, `options`, `answer` (a letter) or `answer_index`.

    Raises:
      UserError: a malformed row; an answer that is no option.
    """
    tasks = []
    for row in rows.read(path):
        # the published set fills up to ten options with N/A, which its own scorer leaves out
        options = [text for text in row.texts("options", least=2) if text.strip() != "N/A"]
        if len(options) > len(LETTERS):
            raise row.mistake(f"there are {len(options)} options; at most {len(LETTERS)} wanted")
        index = row.fields.get("answer_index")
        letter = row.text("answer").strip() if index is None else None
        right = LETTERS.find(letter) if letter and len(letter) == 1 else index
        if isinstance(right, bool) or not isinstance(right, int) or not 0 <= right < len(options):
            found = index if letter is None else letter
            raise row.mistake(f"the answer is {found!r:.20}; there are {len(options)} options")
        name = row.optional("question_id", str(row.number))
        tasks.append(_task("mmlu_pro", name, row.text("question").strip(), options, right))
    return tasks


def _task(source: str, name: str, question: str, choices: Sequence[str], right: int) -> Task:
    listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))
    return Task(
        prompt=f"{question}\n\n{listed}\n\nGive the letter of the right answer in \\boxed{{}}.",
        answer=LETTERS[right],
        verifier=f"{__name__}:verify",
        source=source,
        name=name,
        metadata={contamination.PROBLEM: question, "choices": len(choices)},
    )


def verify(submission: Submission) -> float:
    """1 if the response's letter is the answer's; else 0."""
    return float(letter(submission.response, submission.thinking) == submission.answer)


def letter(response: str, thinking: bool = False) -> str | None:
    """The letter that a response gives, from A to J; None if it gives none."""
    for kind in ("boxed", "answer"):
        found = extract(response, kind, thinking=thinking)
        if found is not None and (alone := _ALONE.match(found.strip().strip("$*").strip())):
            return alone[1] or alone[2]
    return published_letter(final_text(response, thinking=thinking))


def published_letter(text: str) -> str | None:
    """The letter as MMLU-Pro's published scorer finds it."""
    text = text.replace("**", "")
    for pattern in (r"answer is \(?([A-J])\)?", r".*[aA]nswer:\s*([A-J])"):
        if found := re.search(pattern, text):
            return found[1]
    alone = re.findall(r"\b[A-J]\b", text)
    return alone[-1] if alone else None
