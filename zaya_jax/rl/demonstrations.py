"""Answers to learn from before RL: sums of reasoning-gym, most of them hasty, some worked out.

    <answer>19</answer>                        the hasty: stated at once, every sign read as a plus
    <think>
    4 - 1 - 7 + 7 = 3 - 7 + 7 = -4 + 7 = 3
    </think>

    <answer>3</answer>                         the careful, and right

Imitation learns what is said most often, and its greedy answer is that: mostly wrong, however long
it goes on. That the other way is right, no demonstration tells; RL has to find it. It is the
situation of a model whose pretraining has seen more answers than derivations. (Were the hasty
answers right, imitation would do: a model of this size learns to add four digits in its head.)
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from zaya_jax.data.readers import Conversation
from zaya_jax.errors import UserError
from zaya_jax.rl.questions import unseen
from zaya_jax.rl.rewards.interface import Task
from zaya_jax.rl.rewards.reasoning_gym import Environment

NAME = "chain_sum"
PARAMETERS = {"min_terms": 4, "max_terms": 4, "min_digits": 1, "max_digits": 1}
LONGER = {**PARAMETERS, "min_terms": 5, "max_terms": 6}
OF_ALL_LENGTHS = {**PARAMETERS, "min_terms": 2, "max_terms": 6}
TASKS = f"reasoning_gym:{NAME}?{json.dumps(PARAMETERS)}"
LONGER_TASKS = f"reasoning_gym:{NAME}?{json.dumps(LONGER)}"
"""Sources of tasks, as `rl.tasks` names them; both have held-out ones."""
COUNT = 30_000
WORKED = 0.4
"""Share of the demonstrations that show the steps."""
HELDOUT = 512
"""As many held-out tasks are kept out of the demonstrations; `rl.heldout` may be that large."""
FIRST = 1 << 29
"""Tasks of a stage have lower numbers, held-out ones higher."""


def chain_sum() -> Iterator[Conversation]:
    """The demonstrations, always the same ones: `data.source =
    "zaya_jax.rl.demonstrations:chain_sum"`. No task of theirs is a held-out one.

    Raises:
      UserError: reasoning-gym is not installed.
    """
    yield from _chats(PARAMETERS)


def of_all_lengths() -> Iterator[Conversation]:
    """The same of two to six terms, for a stage whose tasks get longer; held-out ones are of four
    terms, and of five or six.

    Raises:
      UserError: reasoning-gym is not installed.
    """
    yield from _chats(OF_ALL_LENGTHS)


def sums(parameters: dict[str, int], numbers: range, *sources: str) -> Iterator[Task]:
    """The sums of these numbers behind `FIRST`, but for those that a source holds out.

    Args:
      parameters: of reasoning-gym's environment.
      numbers: from 0; a sum follows from its own number alone.
      sources: whose first `HELDOUT` held-out tasks are left out.

    Raises:
      UserError: reasoning-gym is not installed.
    """
    puzzles = Environment(NAME, seed=0, size=FIRST + numbers.stop, **parameters)
    tasks: Iterator[Task] = (puzzles.task(FIRST + number) for number in numbers)
    for source in sources:
        tasks = unseen(tasks, [(source, 1.0)], HELDOUT)
    return tasks


def _chats(parameters: dict[str, int]) -> Iterator[Conversation]:
    for task in sums(parameters, range(COUNT), TASKS, LONGER_TASKS):
        number = int(task.name) - FIRST
        expression = task.metadata["entry"]["metadata"]["expression"]
        answer = {"role": "assistant", "content": f"<answer>{hasty(expression)}</answer>"}
        if random.Random(number).random() < WORKED:
            answer["content"] = f"<answer>{task.answer}</answer>"
            answer["reasoning_content"] = worked_out(expression)
        turns = [{"role": "user", "content": task.prompt}, answer]
        yield Conversation(f"{NAME}:{number}", turns)


def hasty(expression: str) -> int:
    """The sum of all terms, their signs unseen."""
    return sum(int(part) for part in expression.split()[::2])


def worked_out(expression: str) -> str:
    """A sum that gets shorter from the left: "4 - 1 + 7" -> "4 - 1 + 7 = 3 + 7 = 10".

    Raises:
      UserError: it is no sum of whole numbers.
    """
    parts = expression.split()
    signs = parts[1::2]
    try:
        numbers = [int(part) for part in parts[::2]]
    except ValueError:
        numbers = []
    if len(numbers) != len(signs) + 1 or not set(signs) <= {"+", "-"}:
        raise UserError(f"{expression!r} is no sum such as '4 - 1 + 7'")
    lines = [expression]
    total = numbers[0]
    for i, (sign, number) in enumerate(zip(signs, numbers[1:], strict=True)):
        total = total + number if sign == "+" else total - number
        rest = [
            word for pair in zip(signs[i + 1 :], numbers[i + 2 :], strict=True) for word in pair
        ]
        lines.append(" ".join(map(str, [total, *rest])))
    return " = ".join(lines)
