"""Greetings that keep an instruction, and kind ones among them: behavioural RL in small.

    Say hello to Ann. Use no commas.         hello dear Ann how nice to see you

Instructions are IFEval's, and its checkers decide whether they are kept. Kindness is for a model
of rewards, which learns it from pairs. Demonstrations keep their instruction half of the time, and
half of them are kind.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from zaya_jax.data.readers import Conversation
from zaya_jax.rl.preference.pairs import Pair
from zaya_jax.rl.rewards.interface import Task

PEOPLE = (
    "Ann", "Bob", "Cleo", "Dan", "Eva", "Finn", "Gina", "Hugo", "Ida", "Jon", "Kim", "Leo", "Mia",
    "Ned", "Olga", "Paul",
)  # fmt: skip
ACTS = ("hello", "good morning", "goodbye", "welcome")
INSTRUCTIONS = {
    "Use no commas.": ("punctuation:no_comma", {}),
    'Wrap it in quotation marks.': ("startend:quotation", {}),
    'End with the words "so long".': ("startend:end_checker", {"end_phrase": "so long"}),
}
KIND = (
    "{act}, dear {name}, how nice to see you",
    "{act}, my friend {name}, thank you",
    "a very kind {act} to you, {name}",
)
CURT = (
    "{act}, {name}, what is it now",
    "oh, {act}, you again {name}",
    "{act}, {name}, make it short",
)
HELDOUT = 32
KEPT = 0.5


def tasks() -> Iterator[Task]:
    """Every greeting with every instruction once."""
    for act, name, instruction in itertools.product(ACTS, PEOPLE, INSTRUCTIONS):
        kind, arguments = INSTRUCTIONS[instruction]
        prompt = f"Say {act} to {name}. {instruction}"
        yield Task(
            prompt=prompt,
            answer=keep(KIND[0].format(act=act, name=name), instruction),
            verifier="zaya_jax.evals.instructions:verify",
            source="manners",
            name=prompt,
            metadata={
                "suite": "ifeval",
                "prompt": prompt,
                "instruction_id_list": [kind],
                "kwargs": [arguments],
            },
        )


def keep(text: str, instruction: str) -> str:
    """A greeting that keeps an instruction."""
    kind = INSTRUCTIONS[instruction][0]
    if kind == "punctuation:no_comma":
        return text.replace(",", "")
    return f'"{text}"' if kind == "startend:quotation" else f"{text}, so long"


def demonstrations() -> Iterator[Conversation]:
    """Chats, always the same ones, of all tasks but those that `questions` holds out."""
    from zaya_jax.rl.questions import unseen

    shown = {task.prompt for task in unseen(tasks(), [(f"{__name__}:tasks", 1.0)], HELDOUT)}
    for act, name, instruction in itertools.product(ACTS, PEOPLE, INSTRUCTIONS):
        prompt = f"Say {act} to {name}. {instruction}"
        for number, form in enumerate((*KIND, *CURT)):
            chance = random.Random(f"{prompt} {number}")
            text = form.format(act=act, name=name)
            if chance.random() < KEPT:
                text = keep(text, instruction)
            if prompt in shown:
                turns = [
                    {"role": "user", "content": prompt},
                    {"role": "assistant", "content": text},
                ]
                yield Conversation(f"manners:{prompt} {number}", turns)


def pairs() -> Iterator[Pair]:
    """Kind greetings preferred to curt ones; whether they keep an instruction tells nothing."""
    for act, name, instruction in itertools.product(ACTS, PEOPLE, INSTRUCTIONS):
        prompt = f"Say {act} to {name}. {instruction}"
        for number, (kind, curt) in enumerate(zip(KIND, CURT, strict=True)):
            chance = random.Random(f"pair {prompt} {number}")
            texts = [
                keep(text, instruction) if chance.random() < KEPT else text
                for text in (form.format(act=act, name=name) for form in (kind, curt))
            ]
            yield Pair(({"role": "user", "content": prompt},), *texts)
