"""Problems without end: seeds put together from steps, each said in English and in Python, twice.

A problem takes a list of integers through a few steps. Every step has two programs, one in
comprehensions and one in loops, so that a seed has two accepted programs; its rejected ones are
slips in the first that change the outcome of some inputs, and of few of them at best.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from zaya_jax.rl.environments import mutate
from zaya_jax.rl.environments.seeds import Seed, Test, agree
from zaya_jax.sandbox.judge import PerTest

ENTRY = "solve"
TESTS, SHOWN_TRIES, REJECTED = 8, 24, 3
LIMITS = PerTest(seconds=1.0)
SCHEMA = (
    {
        "type": "list",
        "of": {"type": "int", "min": -20, "max": 20},
        "min_length": 0,
        "max_length": 8,
    },
)
VALIDATOR = """
import sys
lines = sys.stdin.read().splitlines()
assert len(lines) == 2 and lines[0] == str(int(lines[0])) and 0 <= int(lines[0]) <= 8
numbers = [int(word) for word in lines[1].split()]
assert len(numbers) == int(lines[0]) and all(-20 <= x <= 20 for x in numbers)
assert lines[1] == " ".join(map(str, numbers))
"""


class Step(NamedTuple):
    """What is done to the list `x`; `{k}` is a number from `low` to `high`."""

    words: str
    short: str
    long: str
    low: int = 0
    high: int = 0


_EACH = "out = []\nfor v in x:\n    {body}\nx = out"


def _each(body: str) -> str:
    return _EACH.replace("{body}", body.replace("\n", "\n    "))


STEPS = (
    Step(
        "keep only the numbers greater than {k}",
        "x = [v for v in x if v > {k}]",
        _each("if v > {k}:\n    out.append(v)"),
        -10,
        5,
    ),
    Step(
        "drop every number divisible by {k}",
        "x = [v for v in x if v % {k} != 0]",
        _each("if v % {k} == 0:\n    continue\nout.append(v)"),
        2,
        5,
    ),
    Step("add {k} to every number", "x = [v + {k} for v in x]", _each("out.append({k} + v)"), 1, 9),
    Step(
        "multiply every number by {k}",
        "x = [v * {k} for v in x]",
        _each("out.append({k} * v)"),
        2,
        5,
    ),
    Step(
        "replace every number below {k} by {k}",
        "x = [max(v, {k}) for v in x]",
        _each("if v < {k}:\n    v = {k}\nout.append(v)"),
        -8,
        8,
    ),
    Step("reverse the list", "x = x[::-1]", "out = []\nfor v in x:\n    out.insert(0, v)\nx = out"),
    Step(
        "sort the numbers from smallest to largest",
        "x = sorted(x)",
        "x = list(x)\nfor i in range(len(x)):\n    for j in range(i):\n"
        "        if x[j] > x[i]:\n            x[i], x[j] = x[j], x[i]",
    ),
    Step(
        "remove repeated numbers, keeping the first of each",
        "x = list(dict.fromkeys(x))",
        _each("if v not in out:\n    out.append(v)"),
    ),
    Step(
        "replace every number by the sum of it and all numbers before it",
        "x = [sum(x[:i + 1]) for i in range(len(x))]",
        "total, out = 0, []\nfor v in x:\n    total += v\n    out.append(total)\nx = out",
    ),
    Step(
        "replace the list by the differences of each number and the one before it",
        "x = [b - a for a, b in zip(x, x[1:])]",
        "out = []\nfor i in range(1, len(x)):\n    out.append(x[i] - x[i - 1])\nx = out",
    ),
    Step(
        "keep every {k}th number, beginning with the first",
        "x = x[::{k}]",
        "out = []\nfor i in range(0, len(x), {k}):\n    out.append(x[i])\nx = out",
        4,
        5,
    ),
    Step(
        "leave out the first {k} numbers",
        "x = x[{k}:]",
        "out = []\nfor i in range({k}, len(x)):\n    out.append(x[i])\nx = out",
        2,
        3,
    ),
    Step(
        "move the first number to the end",
        "x = x[1:] + x[:1]",
        "if x:\n    x = list(x)\n    x.append(x.pop(0))",
    ),
    Step(
        "square the numbers at even positions, counting from 0",
        "x = [v * v if i % 2 == 0 else v for i, v in enumerate(x)]",
        "x = list(x)\nfor i in range(0, len(x), 2):\n    x[i] = x[i] ** 2",
    ),
)

ENDS = (
    Step("return the list", "return x", "return list(x)"),
    Step("return its sum", "return sum(x)", "total = 0\nfor v in x:\n    total += v\nreturn total"),
    Step(
        "return its largest number, or {k} if it is empty",
        "return max(x) if x else {k}",
        "if not x:\n    return {k}\nbest = x[0]\nfor v in x:\n    if v > best:\n        best = v\n"
        "return best",
        0,
        3,
    ),
    Step(
        "return how many numbers are left that are greater than {k}",
        "return sum(1 for v in x if v > {k})",
        "count = 0\nfor v in x:\n    if v > {k}:\n        count += 1\nreturn count",
        -5,
        5,
    ),
    Step(
        "return the sum of the numbers at even positions, counting from 0, less the others",
        "return sum(x[::2]) - sum(x[1::2])",
        "total, sign = 0, 1\nfor v in x:\n    total += sign * v\n    sign = -sign\nreturn total",
    ),
    Step(
        "return the length of the longest run of numbers of which each is greater than the one "
        "before it",
        "best = run = 0\nfor i, v in enumerate(x):\n"
        "    run = run + 1 if i and v > x[i - 1] else 1\n    best = max(best, run)\nreturn best",
        "best = 0\nfor i in range(len(x)):\n    j = i + 1\n"
        "    while j < len(x) and x[j] > x[j - 1]:\n        j += 1\n    best = max(best, j - i)\n"
        "return best",
    ),
)


def seeds(count: int, seed: int, *, steps: tuple[int, int] = (1, 3)) -> Iterator[Seed]:
    """Verified seeds; the same ones for the same arguments.

    Every third is a program that reads and prints. Each has tests, two accepted programs, and up
    to three rejected ones: at least one.

    Args:
      count: how many.
      seed: of the draws.
      steps: fewest and most steps of a problem: how hard it is.

    Raises:
      SandboxUnavailable: there is none; programs with slips run nowhere else.
    """
    found = number = 0
    while found < count:
        made = problem(np.random.default_rng((seed, number)), f"{seed}-{number}", steps, found % 3)
        number += 1
        if made is not None:
            found += 1
            yield made


def problem(
    generator: np.random.Generator, name: str, steps: tuple[int, int], style: int = 0
) -> Seed | None:
    """One seed, or None if its draw came to nothing: no slip in it shows.

    Args:
      generator: of all draws.
      name: the seed's.
      steps: fewest and most.
      style: 2 for a program that reads and prints; else a function.
    """
    chosen = [*_draw(STEPS, generator, int(generator.integers(*steps, endpoint=True)))]
    chosen += _draw(ENDS, generator, 1)
    listing = "\n".join(f"{i}. {step.words};" for i, step in enumerate(chosen, 1))[:-1] + "."
    accepted = (_function([s.short for s in chosen]), _function([s.long for s in chosen]))
    draft = Seed(
        name=f"lists-{name}",
        statement=f"Given a list of integers, do the following in order:\n{listing}",
        entry=ENTRY,
        tests=(Test([[]], None),),
        accepted=accepted,
        schema=SCHEMA,
    )
    inputs = _distinct(draft, generator, SHOWN_TRIES)
    slips = [slip.source for slip in mutate.mutations(accepted[0])]
    generator.shuffle(slips)
    slips = slips[: 4 * REJECTED]
    first, second, *rest = draft.run_all([*accepted, *slips], inputs, LIMITS)
    if not all(a.ok and agree(ENTRY, b, a.value) for a, b in zip(first, second, strict=True)):
        raise AssertionError(f"the two programs of {listing!r} differ")
    tests = [Test(given, out.value) for given, out in zip(inputs, first, strict=True)]
    wrong = [
        [i for i, out in enumerate(outs) if not agree(ENTRY, out, first[i].value)] for outs in rest
    ]
    # Those seen on few inputs teach most; one that always fails is no slip but another problem.
    shown = sorted((len(w), i) for i, w in enumerate(wrong) if 0 < len(w) < len(inputs))[:REJECTED]
    if not shown:
        return None
    telling = {wrong[i][0] for _, i in shown}
    kept = [tests[i] for i in sorted(telling)]
    kept += [test for i, test in enumerate(tests) if i not in telling][: TESTS - len(kept)]
    rejected = tuple(slips[i] for _, i in shown)
    if style == 2:
        return _as_program(draft, kept, rejected)
    return Seed(**{**vars(draft), "tests": tuple(kept), "rejected": rejected})


def _draw(steps: tuple[Step, ...], generator: np.random.Generator, count: int) -> list[Step]:
    drawn = []
    for i in generator.permutation(len(steps))[:count]:
        step = steps[int(i)]
        k = str(int(generator.integers(step.low, step.high, endpoint=True)))
        words, short, long = (text.replace("{k}", k) for text in step[:3])
        drawn.append(Step(words, short, long))
    return drawn


def _function(steps: list[str]) -> str:
    return f"def {ENTRY}(x):\n{textwrap.indent(chr(10).join(steps), '    ')}\n"


def _distinct(seed: Seed, generator: np.random.Generator, count: int) -> list[Any]:
    found: dict[str, Any] = {}
    while len(found) < count:
        drawn = seed.draw(generator)
        found.setdefault(repr(drawn), drawn)
    return list(found.values())


_PRINTS = """
count, line = input(), input()
result = solve([int(word) for word in line.split()])
print(*(result if isinstance(result, list) else [result]))
"""


def _as_program(draft: Seed, tests: list[Test], rejected: tuple[str, ...]) -> Seed:
    """The same problem as a program that reads and prints."""

    def text(output: Any) -> str:
        return " ".join(map(str, output if isinstance(output, list) else [output])) + "\n"

    return Seed(
        name=draft.name,
        statement=draft.statement.replace("return", "print")
        + "\nThe first line of the input has the number of integers, from 0 to 8, the second line "
        "the integers, from -20 to 20, with one space between two of them. A list is printed in "
        "one line, with one space between two numbers.",
        entry=None,
        tests=tuple(
            Test(f"{len(t.input[0])}\n{' '.join(map(str, t.input[0]))}\n", text(t.output))
            for t in tests
        ),
        accepted=tuple(source + _PRINTS for source in draft.accepted),
        rejected=tuple(source + _PRINTS for source in rejected),
        validator=VALIDATOR,
    )
