"""Falsification: find a valid input on which a plausible program is wrong.

Report section IV-B, auxiliary code environments. The program is one of the seed's rejected ones;
whether it is wrong on an input, a trusted program tells.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from zaya_jax.answers import FORMATS
from zaya_jax.rl.environments import words
from zaya_jax.rl.environments.codeio import proposed
from zaya_jax.rl.environments.seeds import Seed, agree, is_valid, run, run_all
from zaya_jax.rl.environments.standard import fenced
from zaya_jax.rl.rewards.interface import Submission, Task
from zaya_jax.sandbox.judge import Outcome, PerTest

NAME = "falsification"
LIMITS = PerTest(seconds=2.0, total=2.0)
TRIES = 64


def tasks(seed: Seed, generator: np.random.Generator) -> Iterator[Task]:
    """One task of each rejected program for which an input is found that shows it wrong.

    None of a seed that does not know which inputs are valid.

    Raises:
      SandboxUnavailable: there is none to run programs in.
    """
    if seed.schema is None and seed.validator is None:
        return
    for number, program in enumerate(seed.rejected):
        given = counterexample(seed, program, generator)
        if given is None:
            continue
        answer = given if seed.entry is None else ", ".join(map(repr, given))
        form = "the input" if seed.entry is None else "the arguments, as in a call"
        yield Task(
            prompt=f"This problem was to be solved:\n\n{seed.statement}\n{words.valid(seed.schema)}"
            f"\nThe following program is wrong.\n\n{fenced(program)}\n\nFind a valid input for "
            f"which it does not do what was asked. Give only {form}. {FORMATS['answer']}",
            answer=f"<answer>{answer}</answer>",
            verifier=f"{__name__}:verify",
            source=NAME,
            name=f"{seed.name}-{number}",
            metadata={
                "entry": seed.entry,
                "program": program,
                "trusted": list(seed.accepted),
                "schema": None if seed.schema is None else list(seed.schema),
                "validator": seed.validator,
            },
        )


def verify(submission: Submission) -> float:
    """1 if the response's answer is a valid input that shows the program wrong; else 0.

    Raises:
      SandboxUnavailable: there is none, and nothing was run.
    """
    about = submission.metadata
    given = proposed(submission)
    if given is None or not is_valid(given, about["schema"], about["validator"], LIMITS):
        return 0.0
    entry = about["entry"]
    trusted = [outcomes[0] for outcomes in run_all(about["trusted"], entry, [given], LIMITS)]
    if not all(agree(entry, outcome, trusted[0].value) for outcome in trusted):
        return 0.0  # those who should know do not: nothing is shown
    (outcome,) = run(about["program"], entry, [given], LIMITS)
    return float(is_wrong(entry, outcome, trusted[0].value))


def is_wrong(entry: str | None, outcome: Outcome, output: Any) -> bool:
    """Whether a run gave another output, or failed.

    One that took too long is not counted: that may be the machine's fault.
    """
    if outcome.ok:
        return not agree(entry, outcome, output)
    return outcome.status == "failed"


def counterexample(seed: Seed, program: str, generator: np.random.Generator) -> Any:
    """A valid input that shows a program wrong, out of tests and drawn ones; None if none does."""
    inputs = [test.input for test in seed.tests if words.can_be_given(test.input)]
    if seed.schema is not None:
        inputs += [seed.draw(generator) for _ in range(TRIES)]
    trusted, suspect = seed.run_all([seed.accepted[0], program], inputs, PerTest(seconds=1.0))
    for given, right, outcome in zip(inputs, trusted, suspect, strict=True):
        if right.ok and is_wrong(seed.entry, outcome, right.value) and seed.is_valid(given):
            return given
    return None
