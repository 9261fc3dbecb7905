"""A policy whose rollouts are known: what it writes is decided by its prompt and its seed."""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Sequence

from zaya_jax.data import chat
from zaya_jax.data.tokenizer import Tokenizer, train_bpe
from zaya_jax.infer.rsa import Ask, Sample

QUESTION = "What is six times seven?"
RIGHT = "42"


@functools.cache
def tokenizer() -> Tokenizer:
    words = [
        "so we multiply six and seven, carry the digit, and check it again: \\boxed{42}. "
    ] * 20
    return train_bpe(words, 400, chat.SPECIAL_TOKENS)


@functools.cache
def template() -> chat.ChatTemplate:
    return chat.ChatTemplate.find()


def count(messages) -> int:
    """Tokens of a conversation in our chat template."""
    return len(chat.prompt(messages, tokenizer(), template()))


class Scripted:
    """Right with probability `skill` when it sees no candidates; else if `aggregates` says so of
    how many of the candidates that it sees are right, and how many there are.

    Attributes:
      asks: all that it was asked, in order.
    """

    def __init__(
        self,
        skill: float = 0.5,
        aggregates: Callable[[int, int], bool] = lambda right, shown: right > 0,
        words: int = 30,
        thinks: bool = True,
        backwards: bool = False,
    ):
        self.skill, self.aggregates = skill, aggregates
        self.words, self.thinks, self.backwards = words, thinks, backwards
        self.asks: list[Ask] = []

    def __call__(self, asks: Sequence[Ask], done, progress=None) -> None:
        self.asks += asks
        for i in reversed(range(len(asks))) if self.backwards else range(len(asks)):
            sample = self.answer(asks[i])
            if progress is not None:
                progress(i, sample.text)
            done(i, sample)

    def answer(self, ask: Ask) -> Sample:
        rng = random.Random(ask.seed)
        seen = re.findall(r"I say (\d+)\.", ask.messages[-1]["content"])
        if seen:
            right = self.aggregates(sum(answer == RIGHT for answer in seen), len(seen))
        else:
            right = rng.random() < self.skill
        answer = RIGHT if right else str(rng.randrange(100, 120))
        reasoning = " ".join(rng.choices(["so", "we", "carry", "check"], k=self.words))
        text = f"{reasoning} I say {answer}."
        if self.thinks:
            text = f"<think>{text}</think>The answer is \\boxed{{{answer}}}."
        ids = tokenizer().encode(text)
        finish = "eos" if len(ids) <= ask.max_tokens else "length"
        return Sample(
            text=text if finish == "eos" else tokenizer().decode(ids[: ask.max_tokens]),
            tokens=min(len(ids), ask.max_tokens),
            prompt_tokens=count(ask.messages),
            finish=finish,
        )


def is_right(sample: Sample) -> bool:
    return f"I say {RIGHT}." in sample.text
