"""Sums too long for one rollout, and how to go on with what others got done.

A sum of six terms is worked out line by line, each line shorter by a term. A rollout with a small
budget is cut off before the end; what it has come to is its last whole line, which is a shorter sum
of the same value. Markovian RSA shows the ends of some such attempts to the next round, which goes
on from them: nothing but the tails is carried on. Attempts may be wrong; whoever reads several sees
that one is not like the others.

`demonstrations` are chats to learn both from: sums worked out from the beginning, and sums gone on
with. Attempts shown in them have mistakes, the answers have none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from zaya_jax.data import aggregate
from zaya_jax.data.readers import Conversation
from zaya_jax.rl import demonstrations as demonstrations_lib
from zaya_jax.rl.demonstrations import FIRST, sums, worked_out
from zaya_jax.rl.rewards.interface import Task

PARAMETERS, TASKS = demonstrations_lib.LONGER, demonstrations_lib.LONGER_TASKS
HELDOUT = demonstrations_lib.HELDOUT
TEMPLATE = Path(__file__).with_suffix(".jinja")
COUNT, ASKED = 24_000, 1_000
AGGREGATED = 0.5
"""Share of the demonstrations that go on with attempts."""
ATTEMPTS = (2, 4)
"""Fewest and most that one shows."""
MISTAKE = 0.1
"""Share of an attempt's lines that are wrong."""
TAIL = 60
"""Characters of an attempt that are shown; those that end a line are whole."""
_EQUALS = " = "


def demonstrations() -> Iterator[Conversation]:
    """The chats, always the same ones: `data.source = "zaya_jax.rl.long_sums:demonstrations"`.

    Raises:
      UserError: reasoning-gym is not installed.
    """
    yield from _chats(TASKS, PARAMETERS, AGGREGATED)


def short() -> Iterator[Conversation]:
    """Sums of four terms, as `zaya_jax.rl.demonstrations` has them, all gone on with.

    Raises:
      UserError: reasoning-gym is not installed.
    """
    yield from _chats(demonstrations_lib.TASKS, demonstrations_lib.PARAMETERS, 1.0)


def _chats(tasks: str, parameters: dict[str, int], aggregated: float) -> Iterator[Conversation]:
    for task in sums(parameters, range(COUNT), tasks):
        number = int(task.name) - FIRST
        generator = np.random.default_rng(number)
        prompt, work = task.prompt, worked_out(_expression(task))
        if generator.random() < aggregated:
            tails = attempts(_expression(task), generator)
            prompt, work = shown(task, tails), go_on(_expression(task), tails)
        turns = [
            {"role": "user", "content": prompt},
            {
                "role": "assistant",
                "reasoning_content": work,
                "content": f"<answer>{task.answer}</answer>",
            },
        ]
        yield Conversation(f"long_sums:{number}", turns)


def tasks() -> Iterator[Task]:
    """Sums to go on with, about a thousand: aggregation as `rl.tasks` of a stage. None of them is a
    held-out one."""
    for task in sums(PARAMETERS, range(COUNT, COUNT + ASKED), TASKS):
        generator = np.random.default_rng(int(task.name) - FIRST)
        tails = attempts(_expression(task), generator)
        yield dataclasses.replace(task, prompt=shown(task, tails), source="aggregation")


def shown(task: Task, tails: list[str]) -> str:
    """The aggregation prompt of a task."""
    candidates = [aggregate.Candidate(tail, finished=False, truncated=True) for tail in tails]
    settings = aggregate.Settings(len(tails), template=str(TEMPLATE))
    return aggregate.build_prompt(task.prompt, candidates, settings)


def attempts(expression: str, generator: np.random.Generator) -> list[str]:
    """Ends of attempts at a sum that were cut off at about the same place, with mistakes."""
    count = int(generator.integers(ATTEMPTS[0], ATTEMPTS[1], endpoint=True))
    reach = generator.uniform(0.25, 1.05)
    found = []
    for _ in range(count):
        work = mistaken(expression, generator)
        length = int(len(work) * (reach + generator.normal(0, 0.04)))
        found.append(work[: max(length, 1)][-TAIL:])
    return found


def mistaken(expression: str, generator: np.random.Generator) -> str:
    """A sum worked out as `worked_out` does, some of whose lines are off and are gone on with."""
    lines = [expression]
    while len(parts := lines[-1].split()) > 1:
        total, sign, number, *rest = int(parts[0]), parts[1], int(parts[2]), *parts[3:]
        total = total + number if sign == "+" else total - number
        if generator.random() < MISTAKE:
            total += int(generator.choice([-10, -2, -1, 1, 2, 10]))
        lines.append(" ".join([str(total), *rest]))
    return _EQUALS.join(lines)


def go_on(expression: str, tails: list[str]) -> str:
    """The best line of all attempts, worked out: of those of the right value the shortest; the sum
    from its beginning where none is right."""
    value = _value(expression)
    right = [line for tail in tails for line in lines_of(tail) if _value(line) == value]
    return worked_out(min(right, key=lambda line: len(line.split()), default=expression))


def lines_of(tail: str) -> list[str]:
    """The whole lines in the end of an attempt: those between two equals signs."""
    return [line for line in tail.split(_EQUALS)[1:-1] if line]


def _expression(task: Task) -> str:
    return task.metadata["entry"]["metadata"]["expression"]


def _value(line: str) -> int:
    parts = line.split()
    signed = zip(["+", *parts[1::2]], parts[::2], strict=True)
    return sum(int(number) if sign == "+" else -int(number) for sign, number in signed)
