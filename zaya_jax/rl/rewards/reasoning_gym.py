"""Puzzles without end: tasks and scores of reasoning-gym, which needs an extra.

Only full marks count. Its partial credit goes by substrings, up to 0.3 for a guess, and a policy
finds that out. The answer is extracted first, for the scorers look at all they are given. Some
scorers evaluate it as Python, or give it to sympy, which does so too: there only answers are let
through that can name and call nothing but mathematics.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
from collections.abc import Mapping
from typing import Any

from zaya_jax.answers import FORMATS, extract
from zaya_jax.errors import UserError, hint
from zaya_jax.rl.rewards.interface import Submission, Task

EVALUATED = ("binary_matrix", "n_queens", "spiral_matrix", "string_insertion")
"""Environments whose scorers call `eval` on the answer: nested lists are what they expect."""
PARSED = (
    "countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24",
    "simple_integration",
)  # fmt: skip
"""Those that call sympy's `parse_expr`, which evaluates."""
LISTS = re.compile(r"[\w\s,.\[\]'\"-]*")  # nothing is called without a parenthesis
FORMULA = re.compile(r"[\w\s+\-*/^().,]*")
NAME = re.compile(r"[A-Za-z_]\w*")
FUNCTIONS = frozenset(
    "sin cos tan asin acos atan sinh cosh tanh exp log ln sqrt Abs pi E C".split()
)
LONGEST = 2000


def is_harmless(environment: str, answer: str) -> bool:
    """Whether an answer may be given to an environment's scorer."""
    if environment in EVALUATED:
        return len(answer) <= LONGEST and LISTS.fullmatch(answer) is not None
    if environment in PARSED:
        names = set(NAME.findall(answer))
        known = all(len(name) == 1 or name in FUNCTIONS for name in names)
        return len(answer) <= LONGEST and known and FORMULA.fullmatch(answer) is not None
    return True


class Environment:
    """Tasks of one kind, by number; the same ones for the same arguments."""

    def __init__(self, name: str, *, seed: int = 0, size: int = 1 << 20, **parameters: Any):
        """Args:
          name: as reasoning-gym calls it, such as `countdown`.
          seed: of the tasks.
          size: how many there are.
          parameters: of the environment's config.

        Raises:
          UserError: reasoning-gym is not installed, has no such environment, or refuses the
            parameters.
        """
        self.name, self._parameters, self.size = name, parameters, size
        self._data = _dataset(name, json.dumps(parameters, sort_keys=True), seed, size)

    def task(self, number: int) -> Task:
        """Raises UserError if the environment does not know its own answer: some would need a
        solver."""
        if not 0 <= number < self.size:
            raise IndexError(f"task {number} of {self.size}")
        item = self._data[number]
        answer = item["answer"]
        if answer is None or not str(answer).strip():
            raise UserError(
                f"environment {self.name!r} gives no answer to its task {number}; choose another: "
                "what nobody can solve teaches nothing"
            )
        entry = {"question": item["question"], "answer": answer, "metadata": item["metadata"]}
        return Task(
            prompt=f"{item['question']}\n\n{FORMATS['answer']}",
            answer=str(answer),
            verifier="reasoning_gym",
            source=self.name,
            name=str(number),
            metadata={"name": self.name, "parameters": self._parameters, "entry": entry},
        )


def verify(submission: Submission) -> float:
    """1 if the environment gives the response's answer full marks; else 0.

    Raises:
      UserError: as `Environment`.
    """
    about: Mapping[str, Any] = submission.metadata
    found = extract(submission.response, "answer", thinking=submission.thinking)
    if found is None or not is_harmless(about["name"], found):
        return 0.0
    parameters = json.dumps(about["parameters"], sort_keys=True)
    score = _dataset(about["name"], parameters, 0, 1).score_answer(found, about["entry"])
    return float(score >= 1.0)


@functools.lru_cache(maxsize=64)
def _dataset(name: str, parameters: str, seed: int, size: int) -> Any:
    try:
        library = importlib.import_module("reasoning_gym")
    except ModuleNotFoundError:
        raise UserError(
            "reasoning-gym is not installed: pip install -r requirements-rl.txt"
        ) from None
    known = importlib.import_module("reasoning_gym.factory").DATASETS
    if name not in known:
        raise UserError(f"reasoning-gym has no environment {name!r}{hint(name, known)}")
    try:
        return library.create_dataset(name, size=size, seed=seed, **json.loads(parameters))
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"environment {name!r} refuses its parameters: {error}") from None
