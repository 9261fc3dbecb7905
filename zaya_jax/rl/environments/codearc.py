"""CodeARC: reconstruct a function from what it did; it is tried on inputs that were not shown.

Report section IV-B, auxiliary code environments. One turn: the original lets a model ask for more
examples, here all that are to be had are shown at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from zaya_jax.answers import FORMATS
from zaya_jax.rl.environments import standard, words
from zaya_jax.rl.environments.seeds import Seed
from zaya_jax.rl.rewards.interface import Submission, Task
from zaya_jax.sandbox import values
from zaya_jax.sandbox.judge import PerTest

NAME = "codearc"
SHOWN, HELD_OUT, TRIES = 6, 12, 200
LIMITS = PerTest(seconds=1.0)


def tasks(seed: Seed, generator: np.random.Generator) -> Iterator[Task]:
    """One task, of a function with a schema; none where its inputs are too few to hold some out.

    Raises:
      SandboxUnavailable: there is none to run the reference in.
    """
    if seed.schema is None or seed.entry is None:
        return
    drawn: dict[str, list] = {}
    for _ in range(TRIES):
        if len(drawn) == SHOWN + HELD_OUT:
            break
        given = seed.draw(generator)
        drawn.setdefault(repr(given), given)
    if len(drawn) < SHOWN + HELD_OUT:
        return
    inputs = list(drawn.values())
    outcomes = seed.run(seed.accepted[0], inputs, LIMITS)
    if not all(outcome.ok for outcome in outcomes):
        return
    pairs = [(given, outcome.value) for given, outcome in zip(inputs, outcomes, strict=True)]
    yield Task(
        prompt=f"A hidden function gave these results:\n{words.examples(seed.entry, pairs[:SHOWN])}"
        f"\n\nFind out what it does. {words.form(seed)} It must give what the hidden one gives on "
        f"other inputs, too. {FORMATS['code']}",
        answer=standard.fenced(seed.accepted[0]),
        verifier=f"{__name__}:verify",
        source=NAME,
        name=seed.name,
        metadata={
            "entry": seed.entry,
            "inputs": [values.encode(given) for given, _ in pairs[SHOWN:]],
            "outputs": [values.encode(output) for _, output in pairs[SHOWN:]],
        },
    )


def verify(submission: Submission) -> float:
    """1 if the response's function gives every held-out output; else 0.

    Raises:
      SandboxUnavailable: there is none, and nothing was run.
    """
    return standard.verify(submission)
