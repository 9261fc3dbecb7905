"""CodeI/O: what does this program make of an input, and of which input does it make this?

Report section IV-B, auxiliary code environments. Outputs are compared exactly; an input is judged
by running the program, so every input that does it is right.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from zaya_jax.answers import FORMATS, extract
from zaya_jax.rl.environments import words
from zaya_jax.rl.environments.seeds import Seed, agree, is_valid, normalised, run
from zaya_jax.rl.environments.standard import fenced
from zaya_jax.rl.rewards.interface import Submission, Task
from zaya_jax.sandbox import values
from zaya_jax.sandbox.judge import PerTest

OUTPUT, INPUT = "codeio_output", "codeio_input"
LIMITS = PerTest(seconds=2.0, total=2.0)


def output_tasks(seed: Seed, generator: np.random.Generator) -> Iterator[Task]:
    """Predict an output: one task, of a drawn program and test."""
    program, test = _drawn(seed, generator)
    asked = "returns here"
    form = "Give the value as Python writes it"
    if seed.entry is None:
        asked, form = "prints for this input", "Give exactly what it prints"
    yield Task(
        prompt=f"What does this program give?\n\n{fenced(program)}\n\nSay what it {asked}:\n"
        f"{words.shown_input(seed.entry, test.input)}\n\n{form}. {FORMATS['answer']}",
        answer=f"<answer>{test.output if seed.entry is None else repr(test.output)}</answer>",
        verifier=f"{__name__}:verify_output",
        source=OUTPUT,
        name=seed.name,
        metadata={"entry": seed.entry, "output": values.encode(test.output)},
    )


def verify_output(submission: Submission) -> float:
    """1 if the response's answer is the output: an equal value, or the same text; else 0."""
    answer = extract(submission.response, "answer", thinking=submission.thinking)
    if answer is None:
        return 0.0
    about = submission.metadata
    output = values.decode(about["output"])
    if about["entry"] is None:
        text = answer.removeprefix("```").removesuffix("```").strip("\n")
        return float(normalised(text) == normalised(output.strip("\n")))
    try:
        return float(values.same(words.literal(answer), output))
    except words.Unreadable:
        return 0.0


def input_tasks(seed: Seed, generator: np.random.Generator) -> Iterator[Task]:
    """Find an input: one task; none of a seed that does not know which inputs are valid."""
    possible = tuple(test for test in seed.tests if words.can_be_given(test.input))
    if (seed.schema is None and seed.validator is None) or not possible:
        return
    program, test = _drawn(dataclasses.replace(seed, tests=possible), generator)
    if seed.entry is None:
        answer, form = test.input, "Give the input as the program reads it"
    else:
        answer = ", ".join(map(repr, test.input))
        form = "Give the arguments as in a call, without the function's name"
    yield Task(
        prompt=f"Find an input for which this program gives a certain output.\n\n{fenced(program)}"
        f"\n\n{words.valid(seed.schema)}{_about_validator(seed)}The output is to be:\n"
        f"{words.shown(seed.entry, test.output)}\n\n{form}. "
        f"{FORMATS['answer']}",
        answer=f"<answer>{answer}</answer>",
        verifier=f"{__name__}:verify_input",
        source=INPUT,
        name=seed.name,
        metadata={
            "entry": seed.entry,
            "program": program,
            "output": values.encode(test.output),
            "schema": None if seed.schema is None else list(seed.schema),
            "validator": seed.validator,
        },
    )


def verify_input(submission: Submission) -> float:
    """1 if the response's answer is a valid input that the program makes the output of; else 0.

    Raises:
      SandboxUnavailable: there is none, and nothing was run.
    """
    about = submission.metadata
    given = proposed(submission)
    if given is None or not is_valid(given, about["schema"], about["validator"], LIMITS):
        return 0.0
    (outcome,) = run(about["program"], about["entry"], [given], LIMITS)
    return float(agree(about["entry"], outcome, values.decode(about["output"])))


def proposed(submission: Submission) -> list | str | None:
    """The input that a response proposes: arguments or a text; None if it proposes none."""
    answer = extract(submission.response, "answer", thinking=submission.thinking)
    about = submission.metadata
    if answer is None:
        return None
    if about["entry"] is None:
        return answer.removeprefix("```").removesuffix("```").strip("\n") + "\n"
    try:
        return words.arguments(answer, len(about["schema"]))
    except words.Unreadable:
        return None


def _drawn(seed: Seed, generator: np.random.Generator):
    program = seed.accepted[int(generator.integers(len(seed.accepted)))]
    return program, seed.tests[int(generator.integers(len(seed.tests)))]


def _about_validator(seed: Seed) -> str:
    if seed.validator is None:
        return ""
    return f"About its inputs: {seed.statement}\n"
