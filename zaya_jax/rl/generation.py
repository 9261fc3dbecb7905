"""Generation: an engine that always has so many rollouts under way, and groups that get complete.

Weights are swapped in the middle of rollouts, which go on with the keys and values they have
(PipelineRL, arXiv 2509.19128): every token says under how many updates it was sampled. All is a
function of the questions, the weights and the moments at which they were swapped; there is no clock
in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from zaya_jax.config.rl import RL
from zaya_jax.errors import UserError
from zaya_jax.infer.engine import Engine, Request, Result
from zaya_jax.infer.rsa.generator import Chat
from zaya_jax.infer.sampler import Sampling
from zaya_jax.rl.rewards.interface import Submission, Task
from zaya_jax.rl.rollout import Rollout

MISSES = 10_000
"""Tasks in a row that may be held out, too long, or not there."""


class Finished(NamedTuple):
    """A group whose rollouts have all ended.

    Attributes:
      task: what was asked.
      number: of the task in the stage.
      rollouts: G.
      submissions: G, for the task's verifier.
    """

    task: Task
    number: int
    rollouts: tuple[Rollout, ...]
    submissions: tuple[Submission, ...]


@dataclasses.dataclass
class _Group:
    task: Task
    number: int
    prompt: list[int]
    results: dict[int, Result]


class Generation:
    """Rollouts of a stage.

    Attributes:
      number: of the next task; with the weights it is all that there is to resume from, once
        nothing is under way (`drain`).
      passed_over: tasks whose prompts were too long.
    """

    def __init__(
        self,
        engine: Engine,
        chat: Chat,
        questions: Callable[[int], Task | None],
        section: RL,
        *,
        seed: int,
        number: int = 0,
        stride: int = 1,
        updates: int = 0,
        cannot_ask: Callable[[int], None] = lambda number: None,
    ):
        """Args:
        engine: with the weights of the policy.
        chat: writes prompts as token ids.
        questions: see `questions.Questions`.
        section: group, budgets and sampling.
        seed: of all sampling.
        number: of the first task to ask.
        stride: from the number of a task to that of the next.
        updates: behind the engine's weights.
        cannot_ask: is told of a task whose prompt is too long.

        Raises, in `step`:
          UserError: `MISSES` tasks in a row that cannot be asked.
        """
        self._cannot_ask = cannot_ask
        self._engine, self._chat, self._questions = engine, chat, questions
        self._section, self._seed = section, seed
        self.number, self._stride, self.passed_over = number, stride, 0
        self._updates = {engine.version: updates}
        self._groups: dict[int, _Group] = {}
        self._owner: dict[int, tuple[int, int]] = {}

    @property
    def underway(self) -> int:
        """Rollouts that have not ended."""
        return len(self._owner)

    def swap(
        self, params: Mapping[str, jax.Array], biases: Mapping[str, jax.Array], updates: int
    ) -> None:
        """Goes on with other weights, behind which are so many updates."""
        self._engine.swap(params, biases)
        self._updates[self._engine.version] = updates

    def step(self, *, admit: bool = True) -> list[Finished]:
        """One step of the engine; the groups that it completed, in order."""
        if admit:
            self._admit()
        done = []
        for event in self._engine.step():
            if event.result is None:
                continue
            number, place = self._owner.pop(event.id)
            group = self._groups[number]
            group.results[place] = event.result
            if len(group.results) == self._section.group:
                done.append(self._finish(self._groups.pop(number)))
        return done

    def drain(self) -> list[Finished]:
        """Asks nothing new until all that is under way has ended."""
        done = []
        while self.underway:
            done += self.step(admit=False)
        return done

    def _admit(self) -> None:
        section, missed = self._section, 0
        while self.underway + section.group <= max(section.concurrent, section.group):
            if missed > MISSES:
                raise UserError(
                    f"{missed:,} tasks in a row could not be asked, of which "
                    f"{self.passed_over:,} had prompts of more than rl.max_prompt = "
                    f"{section.max_prompt} tokens; the others are held out, or their environment "
                    "made none: see rl.tasks"
                )
            number, self.number = self.number, self.number + self._stride
            task = self._questions(number)
            if task is None:
                missed += 1
                continue
            prompt = self._chat.encode([{"role": "user", "content": task.prompt}])
            if len(prompt) > section.max_prompt:
                missed, self.passed_over = missed + 1, self.passed_over + 1
                self._cannot_ask(number)
                continue
            self._groups[number] = _Group(task, number, prompt, {})
            for place in range(section.group):
                key = np.random.SeedSequence((self._seed, number, place)).generate_state(1)
                sampling = Sampling(1.0, min_p=section.min_p, seed=int(key[0]) >> 1)
                request = Request(prompt, section.max_tokens, sampling, routes=section.loss.replay)
                self._owner[self._engine.add(request)] = (number, place)

    def _finish(self, group: _Group) -> Finished:
        thinking = self._chat.opens_thinking(group.prompt)
        rollouts, submissions = [], []
        for _, result in sorted(group.results.items()):
            rollouts.append(self._rollout(group, result))
            submissions.append(
                Submission(
                    self._chat.decode(result), group.task.answer, group.task.metadata, thinking
                )
            )
        return Finished(group.task, group.number, tuple(rollouts), tuple(submissions))

    def _rollout(self, group: _Group, result: Result) -> Rollout:
        routes = None
        if result.routes is not None:
            routes = result.routes[: len(group.prompt) + len(result.tokens) - 1, :, 0]
        return Rollout(
            prompt=np.asarray(group.prompt, np.int32),
            completion=np.asarray(result.tokens, np.int32),
            logprobs=np.asarray(result.logprobs, np.float32),
            versions=np.asarray([self._updates[v] for v in result.versions], np.int32),
            finish=result.finish,
            routes=routes,
        )
