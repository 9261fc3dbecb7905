"""The ordinary problem: write a program that passes tests."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from zaya_jax.answers import FORMATS, extract
from zaya_jax.rl.environments import words
from zaya_jax.rl.environments.seeds import Seed, agree, run
from zaya_jax.rl.rewards.interface import Submission, Task
from zaya_jax.sandbox import values
from zaya_jax.sandbox.judge import PerTest

NAME = "code"
SHOWN = 2
LIMITS = PerTest(seconds=2.0, total=5.0, stop=True)


def tasks(seed: Seed, generator: np.random.Generator) -> Iterator[Task]:
    """One task; the first tests are shown, all of them count."""
    del generator
    shown = [(test.input, test.output) for test in seed.tests[:SHOWN]]
    yield Task(
        prompt=f"{seed.statement}\n\n{words.form(seed)} For example:\n"
        f"{words.examples(seed.entry, shown)}\n\n{FORMATS['code']}",
        answer=fenced(seed.accepted[0]),
        verifier=f"{__name__}:verify",
        source=NAME,
        name=seed.name,
        metadata={
            "entry": seed.entry,
            "inputs": [values.encode(test.input) for test in seed.tests],
            "outputs": [values.encode(test.output) for test in seed.tests],
        },
    )


def verify(submission: Submission) -> float:
    """1 if the response's program gives every output; else 0.

    Raises:
      SandboxUnavailable: there is none, and nothing was run.
    """
    program = extract(submission.response, "code", thinking=submission.thinking)
    if program is None:
        return 0.0
    about = submission.metadata
    inputs, outputs = (
        [values.decode(value) for value in about[name]] for name in ("inputs", "outputs")
    )
    outcomes = run(program, about["entry"], inputs, LIMITS)
    return float(all(map(lambda a, b: agree(about["entry"], a, b), outcomes, outputs)))


def fenced(program: str) -> str:
    """A program as an answer."""
    return f"```python\n{program.strip(chr(10))}\n```"
