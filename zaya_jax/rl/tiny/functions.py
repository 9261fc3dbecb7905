"""Functions of two numbers: what a small model can write, and the sandbox can run.

    Write f(x, y): 3 times x minus y.        def f(x, y):
                                                 return 3 * x - y

Half of the demonstrations have a wrong program, so imitation comes to half.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from zaya_jax.answers import FORMATS
from zaya_jax.data.readers import Conversation
from zaya_jax.rl.rewards.interface import Task
from zaya_jax.sandbox import values

RIGHT = 0.5
HELDOUT = 32
"""Problems that are not demonstrated; `rl.heldout` may be as large."""
COPIES = 4
"""Demonstrations of each problem."""
NAMES = (("a", "b"), ("x", "y"), ("m", "n"), ("p", "q"))
SIMPLE = {
    "the sum of {0} and {1}": "{0} + {1}",
    "the product of {0} and {1}": "{0} * {1}",
    "{0} minus {1}": "{0} - {1}",
    "{1} minus {0}": "{1} - {0}",
    "the larger of {0} and {1}": "max({0}, {1})",
    "the smaller of {0} and {1}": "min({0}, {1})",
}
SCALED = {
    "{2} times {0} plus {1}": "{2} * {0} + {1}",
    "{2} times {0} minus {1}": "{2} * {0} - {1}",
    "{0} plus {2} times {1}": "{0} + {2} * {1}",
    "{0} minus {2} times {1}": "{0} - {2} * {1}",
}
INPUTS = ((0, 0), (1, 2), (5, 3), (-4, 7), (12, -5), (9, 9))


def problems() -> list[tuple[str, str, tuple[str, str]]]:
    """(what is asked, the expression, names of the arguments), in order."""
    found = []
    for names in NAMES:
        found += [(w.format(*names), e.format(*names), names) for w, e in SIMPLE.items()]
        for factor in range(2, 10):
            found += [
                (words.format(*names, factor), expression.format(*names, factor), names)
                for words, expression in SCALED.items()
            ]
    return found


def program(expression: str, names: tuple[str, str]) -> str:
    """A program as an answer."""
    return f"```python\ndef f({', '.join(names)}):\n    return {expression}\n```"


def tasks() -> Iterator[Task]:
    """Every problem once: `rl.tasks = (("zaya_jax.rl.tiny.functions:tasks", 1.0),)`."""
    for number, (words, expression, names) in enumerate(problems()):
        scope: dict = {}
        exec(f"def f({', '.join(names)}): return {expression}", scope)  # noqa: S102  # of our own
        yield Task(
            prompt=f"Write f({', '.join(names)}): {words}.\n\n{FORMATS['code']}",
            answer=program(expression, names),
            verifier="zaya_jax.rl.environments.standard:verify",
            source="functions",
            name=str(number),
            metadata={
                "entry": "f",
                "inputs": [values.encode(list(given)) for given in INPUTS],
                "outputs": [values.encode(scope["f"](*given)) for given in INPUTS],
            },
        )


def demonstrations() -> Iterator[Conversation]:
    """Chats, always the same ones, of all problems but those that `questions` holds out."""
    from zaya_jax.rl.questions import unseen

    every = problems()
    for task in unseen(tasks(), [(f"{__name__}:tasks", 1.0)], HELDOUT):
        _, expression, names = every[int(task.name)]
        for copy in range(COPIES):
            chance = random.Random(f"{task.name} {copy}")
            given = expression if chance.random() < RIGHT else _wrong(expression, chance)
            turns = [
                {"role": "user", "content": task.prompt},
                {"role": "assistant", "content": program(given, names)},
            ]
            yield Conversation(f"functions:{task.name}-{copy}", turns)


def _wrong(expression: str, chance: random.Random) -> str:
    """Another expression of the same form."""
    swaps = {"+": "-", "-": "+", "*": "+", "max": "min", "min": "max"}
    words = expression.replace("(", " ( ").split()
    place = chance.choice([i for i, word in enumerate(words) if word in swaps])
    words[place] = swaps[words[place]]
    return " ".join(words).replace(" ( ", "(")
