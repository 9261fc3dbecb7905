"""What each stage is asked: pure functions of the population before it.

Stage 0 gets the conversation as it is. A later one gets it with the last message replaced by the
aggregation prompt (`zaya_jax.data.aggregate`, which makes the training data too). Of a population
nothing but tails of tau tokens is carried on: a prompt has at most |q| + C tau tokens and a
constant for the words between them, however many rounds there are (`longest`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from zaya_jax.data import aggregate
from zaya_jax.data.aggregate import Candidate
from zaya_jax.data.messages import THINK
from zaya_jax.data.tokenizer import Tokenizer
from zaya_jax.errors import UserError
from zaya_jax.infer.rsa.policy import Ask, Message, Sample
from zaya_jax.infer.rsa.settings import Sampling, Settings

DRAW, GENERATE = 0, 1
"""What a seed is of: which candidates are shown, or which tokens are written."""


SEAM = 8
"""Tokens more that two texts may come to when they stand side by side, at each seam."""


class Planned(NamedTuple):
    """An ask, and the numbers of the rollouts of the stage before that it shows, in their order."""

    ask: Ask
    shown: tuple[int, ...]


def plan(
    stage: int,
    before: Sequence[Sample],
    conversation: Sequence[Message],
    settings: Settings,
    tokenizer: Tokenizer,
) -> list[Planned]:
    """All asks of a stage: N of 0..T, and one of stage T + 1 (`selection: aggregate`).

    Args:
      stage: its number.
      before: the population of the stage before; of none in stage 0.
      conversation: messages, the last one the user's.
      settings: the run's.
      tokenizer: counts the tokens of tails.
    """
    selects = stage > settings.rounds
    count = 1 if selects else settings.population
    sampling = settings.sampling
    if selects:
        sampling = Sampling(settings.selection_temperature)
    if stage == 0:
        picks: list[tuple[int, ...]] = [()] * count
        conversations = [tuple(conversation)] * count
    else:
        picks = draw(stage, len(before), count, settings)
        tails = {
            i: candidate(before[i], settings, tokenizer)
            for i in sorted({i for pick in picks for i in pick})
        }
        problem = conversation[-1]["content"]
        conversations = [
            (
                *conversation[:-1],
                {
                    "role": "user",
                    "content": aggregate.build_prompt(
                        problem, [tails[i] for i in pick], settings.shown
                    ),
                },
            )
            for pick in picks
        ]
    return [
        Planned(
            Ask(messages, settings.budget_of(stage), sampling, _seed(settings.seed, stage, i)), pick
        )
        for i, (messages, pick) in enumerate(zip(conversations, picks, strict=True))
    ]


def candidate(sample: Sample, settings: Settings, tokenizer: Tokenizer) -> Candidate:
    """What a prompt shows of a rollout; one that ended without ever thinking is finished, too, and
    all of it is its answer."""
    shown = aggregate.candidate(sample.text, tokenizer, settings.shown)
    thought = sample.thinking or THINK[0] in sample.text or shown.finished
    if thought or not sample.finished:
        return shown
    if settings.hybrid:
        return Candidate(sample.text.strip(), finished=True, truncated=False)
    return dataclasses.replace(shown, finished=True)


def longest(
    conversation: Sequence[Message],
    settings: Settings,
    count: Callable[[Sequence[Message]], int],
) -> int:
    """Tokens that no prompt of a run exceeds: |q| + C tau + constant.

    Args:
      conversation: messages, the last one the user's; their tokens are |q|.
      settings: the run's. In the hybrid a whole answer may take the place of a tail.
      count: tokens of a conversation as the policy writes it.
    """
    question = count(conversation)
    if not settings.aggregates:
        return question
    empty = [Candidate("", finished=False, truncated=True)] * settings.candidates
    words = aggregate.build_prompt("", empty, settings.shown)
    constant = count([{"role": "user", "content": words}]) + SEAM * (settings.candidates + 1)
    return question + settings.candidates * settings.longest_shown + constant


def draw(stage: int, rollouts: int, count: int, settings: Settings) -> list[tuple[int, ...]]:
    """Which rollouts each prompt of a stage shows: C of N without replacement; its own if C = 1."""
    generator = np.random.default_rng([settings.seed, stage, DRAW])
    return aggregate.select(rollouts, settings.candidates, count, generator)


def check(conversation: Sequence[Message]) -> None:
    """Raises UserError unless the conversation ends with something that the user says."""
    if not conversation or conversation[-1].get("role") != "user":
        raise UserError("the conversation must end with a message of the user's")
    content = conversation[-1].get("content")
    if not isinstance(content, str) or not content.strip():
        raise UserError("the user's last message has no text: there is nothing to solve")


def _seed(seed: int, stage: int, number: int) -> int:
    """Of a rollout: the same whatever ran before it, in whichever order."""
    high, low = np.random.SeedSequence([seed, stage, GENERATE, number]).generate_state(2)
    return (int(high) << 32 | int(low)) >> 1
