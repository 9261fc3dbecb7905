"""How many held-out tasks a policy gets right: greedily, by a vote, or with Markovian RSA.

All tasks are answered side by side: a stage of RSA is generated for every task before the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from zaya_jax import load
from zaya_jax.answers import Kind
from zaya_jax.config.rl import Scoring
from zaya_jax.errors import UserError
from zaya_jax.infer.engine import Engine, Options, Request, Result
from zaya_jax.infer.request import Completion, Finish
from zaya_jax.infer.rsa import Ask, Sample, Settings, selection
from zaya_jax.infer.rsa import prompts as stages
from zaya_jax.infer.rsa import settings as rsa
from zaya_jax.infer.rsa.generator import Chat
from zaya_jax.infer.sampler import Sampling
from zaya_jax.rl.rewards.interface import Submission, Task
from zaya_jax.rl.rewards.score import Scorer

ROOT = Path(__file__).parents[2]


class Scored(NamedTuple):
    """What came of it.

    Attributes:
      accuracy: share of the tasks that were answered right.
      length: tokens of an answer, mean; with RSA of a rollout of the last stage.
      decoded: D(q), newly decoded tokens of all rollouts of a task, mean.
      prompt: tokens of the longest prompt.
      failures: answers that no verifier could judge; they count as wrong.
    """

    accuracy: float
    length: float
    decoded: float
    prompt: int
    failures: int = 0

    @property
    def warning(self) -> str:
        """What to say beside the accuracy; nothing if all were judged."""
        if not self.failures:
            return ""
        return f"; {self.failures} of its verifiers failed, which counts as wrong"


def settings_of(scoring: Scoring, max_tokens: int) -> Settings:
    """Markovian RSA as a config names it."""
    return Settings(
        population=scoring.population,
        candidates=scoring.candidates,
        rounds=scoring.rounds,
        tail=scoring.tail,
        budget=scoring.budget or max_tokens,
        final_budget=None,
        template=_template(scoring.template),
    )


def _template(name: str | None) -> str | None:
    """As it is named, or as it lies in the repository: configs name ours by that path."""
    if name is None or Path(name).exists() or not (ROOT / name).exists():
        return name
    return str(ROOT / name)


def kind_of(verifier: str) -> Kind:
    """Where a verifier looks for an answer."""
    if verifier == "math":
        return "boxed"
    if verifier.startswith("zaya_jax.rl.environments."):
        return "code" if verifier.endswith(CODE) else "answer"
    return "answer" if verifier == "reasoning_gym" else "auto"


CODE = ("standard:verify", "codearc:verify")
"""Verifiers that run programs."""


def room(tasks: Sequence[Task], scoring: Scoring, max_tokens: int, chat: Chat) -> int:
    """Tokens that the longest prompt and its rollout may take."""
    conversations = [[{"role": "user", "content": task.prompt}] for task in tasks]
    if not scoring.population:
        longest = max((len(chat.encode(c)) for c in conversations), default=0)
        return longest + max_tokens
    settings = settings_of(scoring, max_tokens)
    asked = [
        stages.longest(conversation, settings, lambda m: len(chat.encode(m)))
        for conversation in conversations
    ]
    return max(asked, default=0) + settings.budget


class Writes(Protocol):
    """An engine, or rollout workers."""

    def generate(self, requests: Sequence[Request]) -> list[Result]: ...


def score(
    engine: Writes,
    chat: Chat,
    tasks: Sequence[Task],
    scorer: Scorer,
    scoring: Scoring,
    max_tokens: int,
) -> Scored:
    """Answers tasks and has them judged. What a verifier fails on counts as wrong.

    Args:
      engine: with nothing under way.
      chat: of its model.
      tasks: at least one.
      scorer: judges.
      scoring: how they are answered.
      max_tokens: of an answer, where `scoring.budget` says nothing.

    Raises:
      UserError: a task that has no room; not one verifier that works.
    """
    if not scoring.population:
        greedy = rsa.Sampling(temperature=0.0)
        asks = [
            Ask(({"role": "user", "content": task.prompt},), max_tokens, greedy, seed=0)
            for task in tasks
        ]
        samples = answer(engine, chat, asks)
        submitted = [submission(*pair) for pair in zip(tasks, samples, strict=True)]
        lengths = [float(sample.tokens) for sample in samples]
        accuracy, failures = _judge(scorer, tasks, submitted)
        longest, mean = max(sample.prompt_tokens for sample in samples), float(np.mean(lengths))
        return Scored(accuracy, mean, mean, longest, failures)
    return _with_rsa(engine, chat, tasks, scorer, settings_of(scoring, max_tokens))


class Set(NamedTuple):
    """Tasks to score on.

    Attributes:
      tasks: at least one.
      scoring: how they are answered.
      max_tokens: see `score`.
    """

    tasks: Sequence[Task]
    scoring: Scoring
    max_tokens: int


def score_run(path: Path, sets: Mapping[str, Set], *, rows: int, seconds: float) -> Iterator[
    tuple[str, Scored]
]:  # fmt: skip
    """Scores the model of a run on several sets, with one engine for all.

    Args:
      path: as `load` takes it.
      sets: by name.
      rows: answers at a time.
      seconds: that a verifier may take.

    Yields:
      Name and score, in order.

    Raises:
      UserError: as `load`, `Engine` and `score`.
    """
    loaded = load.load(path)
    chat = Chat(loaded)
    longest = max(room(*one, chat) for one in sets.values())
    engine = Engine(loaded, Options(rows=rows, row_sizes=(rows,), capacity=longest))
    with Scorer(seconds=seconds) as scorer:
        for name, one in sets.items():
            yield name, score(engine, chat, one.tasks, scorer, one.scoring, one.max_tokens)


def _with_rsa(
    engine: Writes, chat: Chat, tasks: Sequence[Task], scorer: Scorer, settings: Settings
) -> Scored:
    tokenizer = chat.tokenizer
    each = [
        dataclasses.replace(settings, seed=i, kind=kind_of(task.verifier))
        for i, task in enumerate(tasks)
    ]
    populations: list[list[Sample]] = [[] for _ in tasks]
    decoded, longest = 0, 0
    for stage in range(settings.rounds + 1):
        asks = [
            planned.ask
            for task, own, before in zip(tasks, each, populations, strict=True)
            for planned in stages.plan(
                stage, before, [{"role": "user", "content": task.prompt}], own, tokenizer
            )
        ]
        samples = answer(engine, chat, asks)
        decoded += sum(sample.tokens for sample in samples)
        longest = max(longest, *(sample.prompt_tokens for sample in samples))
        N = settings.population
        populations = [samples[i * N : (i + 1) * N] for i in range(len(tasks))]
    submitted = []
    for task, own, population in zip(tasks, each, populations, strict=True):
        chosen = selection.majority(population, own.kind).rollout
        sample = population[0 if chosen is None else chosen]  # as it was written
        submitted.append(submission(task, sample))
    lengths = [sample.tokens for population in populations for sample in population]
    accuracy, failures = _judge(scorer, tasks, submitted)
    return Scored(accuracy, float(np.mean(lengths)), decoded / len(tasks), longest, failures)


def answer(engine: Writes, chat: Chat, asks: Sequence[Ask]) -> list[Sample]:
    """Generates what is asked for, side by side."""
    prompts = [chat.encode(ask.messages) for ask in asks]
    requests = [
        Request(
            prompt,
            ask.max_tokens,
            Sampling(
                ask.sampling.temperature,
                ask.sampling.top_k,
                ask.sampling.top_p,
                ask.sampling.min_p,
                seed=ask.seed,
            ),
        )
        for ask, prompt in zip(asks, prompts, strict=True)
    ]
    samples = []
    for prompt, result in zip(prompts, engine.generate(requests), strict=True):
        finish: Finish = "length" if result.finish == "length" else "eos"
        written = Completion(
            result.text, result.tokens, result.logprobs, finish, result.prompt_tokens
        )
        samples.append(
            Sample(
                text=chat.decode(written),
                tokens=len(result.tokens),
                prompt_tokens=len(prompt),
                finish=finish,
                thinking=chat.opens_thinking(prompt),
            )
        )
    return samples


def submission(task: Task, sample: Sample) -> Submission:
    """An answer, as a verifier takes it."""
    return Submission(sample.text, task.answer, task.metadata, sample.thinking)


def _judge(
    scorer: Scorer, tasks: Sequence[Task], submitted: Sequence[Submission]
) -> tuple[float, int]:
    """Accuracy, and how many answers were not judged.

    Raises:
      UserError: none was: there is no sandbox, say, or a package is missing.
    """
    scores = scorer.score([task.verifier for task in tasks], submitted)
    failures = int(np.isnan(scores.rewards).sum())
    if failures == len(tasks):
        raise UserError(f"no answer could be judged: {'; '.join(scores.messages.values())}")
    return float(np.mean(np.nan_to_num(scores.rewards))), failures
