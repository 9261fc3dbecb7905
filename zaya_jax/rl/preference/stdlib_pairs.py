"""Pairs made of the standard library: a function as it is written there, or one that is not it.

The prompt asks for a function by its signature and docstring (`zaya_jax.data.stdlib_chat`). The
chosen response is its code. The rejected one has as good a length: the code with its lines in
another order, or that of the function of the library whose length is next to it. So neither length
nor looks tell them apart for long.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from zaya_jax.answers import final_text
from zaya_jax.data import sources
from zaya_jax.data.readers import Conversation, Rules
from zaya_jax.rl.preference.pairs import Pair

LONGEST, SHORTEST = 700, 80
"""Characters of code that a tiny model is asked to judge."""


def pairs() -> Iterator[Pair]:
    """The pairs, always the same ones for a version of Python: `preference.pairs =
    "zaya_jax.rl.preference.stdlib_pairs:pairs"`."""
    found = []
    for chat in sources.read("stdlib-chat", Rules()):
        assert isinstance(chat, Conversation)
        question, answer = (message["content"] for message in chat.messages[:2])
        code = final_text(answer).strip()
        if SHORTEST <= len(code) <= LONGEST and len(question) <= LONGEST:
            found.append((len(code), question, code))
    found.sort()
    for i, (_, question, code) in enumerate(found):
        chance = random.Random(question)
        neighbour = found[(i + chance.choice((-1, 1))) % len(found)]
        wrong = shuffled(code, chance) if chance.random() < 0.5 else neighbour[-1]
        if wrong.strip() != code:
            yield Pair(({"role": "user", "content": question},), code, wrong)


def shuffled(code: str, chance: random.Random) -> str:
    """A block of code whose lines, but for fence and signature, are in another order."""
    head, *body = re.split(r"(?<=:\n)", code, maxsplit=1)
    lines = "".join(body).splitlines()
    last = [lines.pop()] if lines and lines[-1].startswith("```") else []
    chance.shuffle(lines)
    return head + "\n".join([*lines, *last])
