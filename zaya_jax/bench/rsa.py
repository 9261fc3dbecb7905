"""What Markovian RSA carries: prompts, contexts and cache of T = 0 to 8 rounds, beside the bound.

Weights are random, so rollouts hardly ever end by themselves: every one takes its whole budget,
which is the most that a run may take.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zaya_jax.bench.quantization import random_weights
from zaya_jax.config import Model
from zaya_jax.data import chat
from zaya_jax.data.tokenizer import train_bpe
from zaya_jax.infer.engine.pool import page_bytes
from zaya_jax.infer.rsa import Sample, Settings, algorithm, prompts
from zaya_jax.infer.rsa.algorithm import Silent
from zaya_jax.infer.rsa.generator import Chat, LocalPolicy, capacity

ROUNDS = range(9)
QUESTION = "What is the sum of all primes below one hundred? Show your work. " * 3
SETTINGS = Settings(
    population=4, candidates=2, rounds=0, tail=48, budget=96, final_budget=None, selection="none"
)


@dataclasses.dataclass(frozen=True)
class Row:
    """A run of T rounds.

    rounds: T. prompt, context: tokens of the longest. prompt_bound: |q| + C tau + constant.
    context_bound: that and beta. held: bytes of cache that all rollouts held at once, at most.
    decoded: D(q). chain: tokens of a context that keeps all that one rollout and its successors
    have written: |q| + (T + 1) beta. seconds: of the run.
    """

    rounds: int
    prompt: int
    prompt_bound: int
    context: int
    context_bound: int
    held: int
    decoded: int
    chain: int
    seconds: float


class Watch(Silent):
    """Looks at the engine whenever something was written. Bytes."""

    def __init__(self, policy: LocalPolicy, page: int):
        self._policy, self._page, self.held = policy, page, 0

    def write(self, number: int, text: str) -> None:
        self._look()

    def end(self, number: int, sample: Sample) -> None:
        self._look()

    def _look(self) -> None:
        load = self._policy.engine.load
        pages = load.pages - load.pages_free - load.pages_idle
        self.held = max(self.held, pages * self._page)


def measure(model: Model, seed: int) -> list[Row]:
    """Runs of every number of rounds, on one engine.

    Raises:
      UserError: a context too short for them.
    """
    loaded = random_weights(model, seed)
    texts = [QUESTION, "Below are a problem and candidate solutions to it. " * 9]
    tokenizer = train_bpe(texts, min(320, model.vocab_size), chat.SPECIAL_TOKENS)
    loaded = dataclasses.replace(loaded, tokenizer=tokenizer)
    form, conversation = Chat(loaded), [{"role": "user", "content": QUESTION}]

    def settings(rounds: int) -> Settings:
        return dataclasses.replace(SETTINGS, rounds=rounds, seed=seed)

    def count(messages: Any) -> int:
        return len(form.encode(messages))

    room = capacity(conversation, settings(ROUNDS[-1]), form, model.context_length)
    policy = LocalPolicy(loaded, form, batch=SETTINGS.population, capacity=room)
    policy.engine.warm_up()
    page = page_bytes(loaded.model, policy.engine.options.page)
    rows = []
    for rounds in ROUNDS:
        own, watch, begun = settings(rounds), Watch(policy, page), time.perf_counter()
        result = algorithm.solve(policy, conversation, own, tokenizer, observer=watch)
        bound = prompts.longest(conversation, own, count)
        rows.append(
            Row(
                rounds,
                max(cost.longest_prompt for cost in result.costs),
                bound,
                max(cost.longest_context for cost in result.costs),
                bound + own.budget,
                watch.held,
                result.decoded,
                count(conversation) + (rounds + 1) * own.budget,
                time.perf_counter() - begun,
            )
        )
    return rows


def show(rows: Sequence[Row]) -> str:
    """The table, in Markdown."""
    lines = [
        "| T | longest prompt | bound | longest context | bound | cache, KB | D(q) | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.rounds} | {row.prompt} | {row.prompt_bound} | {row.context} | {row.context_bound} "
        f"| {row.held / 1e3:,.0f} | {row.decoded:,} | {row.seconds:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


def plot(rows: Sequence[Row], file: Path) -> None:
    """Contexts and cache against T."""
    from matplotlib.figure import Figure

    rounds = [row.rounds for row in rows]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(rounds, [row.chain for row in rows], ":", color="gray", label="all carried on")
    left.plot(rounds, [row.context_bound for row in rows], "--", label="bound of a context")
    left.plot(rounds, [row.context for row in rows], "o-", label="longest context")
    left.plot(rounds, [row.prompt_bound for row in rows], "--", label="bound of a prompt")
    left.plot(rounds, [row.prompt for row in rows], "o-", label="longest prompt")
    left.set(xlabel="T, rounds of aggregation", ylabel="tokens", ylim=(0, None))
    right.plot(rounds, [row.held / 1e3 for row in rows], "o-", label="cache held by all rollouts")
    right.set(xlabel="T, rounds of aggregation", ylabel="KB", ylim=(0, None))
    for axes in (left, right):
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(file)
