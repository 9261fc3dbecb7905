"""What a rollout worker is: an engine with its rollouts, wherever it runs.

The trainer holds one itself, or some in processes or Ray actors of their own (`workers`). A host
is told what to do and answers; it never acts by itself, so what it samples depends on its orders
alone.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from zaya_jax import load
from zaya_jax.config import Experiment
from zaya_jax.errors import UserError
from zaya_jax.infer.engine import Engine, Options, Request, Result
from zaya_jax.infer.rsa.generator import Chat
from zaya_jax.load import Loaded
from zaya_jax.model.functional import Biases, Params
from zaya_jax.rl import scoring
from zaya_jax.rl.generation import Finished, Generation
from zaya_jax.rl.questions import Questions


@dataclasses.dataclass(frozen=True)
class Place:
    """Which worker of how many, and where it goes on.

    Attributes:
      worker: its number, of `workers`. It asks every task whose number is its own by that modulus.
      number: of the next task that it asks.
      updates: behind the weights that it is given.
    """

    worker: int
    workers: int
    number: int
    updates: int


@dataclasses.dataclass(frozen=True)
class Opened:
    """What a stage is about, weights apart: read once, and shared where there is one process.

    Attributes:
      loaded: the model to start from, without its values.
      chat: writes its prompts.
      questions: what is asked.
    """

    loaded: Loaded
    chat: Chat
    questions: Questions


def opened(experiment: Experiment) -> Opened:
    """Opens the model and the tasks that a stage names.

    Raises:
      UserError: what `load` and `Questions` say.
    """
    section = experiment.rl
    loaded = load.load(experiment.train.init_from or "")
    loaded = dataclasses.replace(loaded, params={}, biases={})
    questions = Questions(
        section.tasks,
        heldout=section.heldout,
        seed=experiment.train.seed,
        curriculum=section.curriculum,
    )
    return Opened(loaded, Chat(loaded), questions)


class Host:
    """An engine and the rollouts that it has under way.

    Attributes:
      engine: of the policy.
      questions: what is asked.
    """

    def __init__(
        self, experiment: Experiment, opened: Opened, place: Place, params: Params, biases: Biases,
        device: jax.Device | None = None,
    ):  # fmt: skip
        """Args:
          experiment: the stage.
          opened: what it is about.
          place: see `Place`.
          params, biases: of the policy, layers each on its own.
          device: where they go; the first by default.

        Raises:
          UserError: what `Engine` says; a pool with no room for a rollout.
        """
        section = experiment.rl
        self._device = device or jax.local_devices()[0]
        self.questions = opened.questions
        rows = max(section.concurrent // place.workers, section.group)
        self.engine = self._open(experiment, opened, rows, params, biases)
        self._generation = Generation(
            self.engine,
            opened.chat,
            opened.questions,
            dataclasses.replace(section, concurrent=rows),
            seed=experiment.train.seed,
            number=place.number,
            stride=place.workers,
            updates=place.updates,
            cannot_ask=opened.questions.cannot_ask,
        )

    def _open(
        self, experiment: Experiment, opened: Opened, rows: int, params: Params, biases: Biases
    ) -> Engine:
        section = experiment.rl
        model = dataclasses.replace(experiment.model, layers="unroll", remat="none")
        loaded = dataclasses.replace(
            opened.loaded, model=model, params=self._own(params), biases=self._own(biases)
        )
        room = section.max_prompt + section.max_tokens
        asked = scoring.room(
            opened.questions.heldout, section.scoring, section.max_tokens, opened.chat
        )
        # Few shapes to compile: as many rows as there are mostly, and fewer to run dry.
        sizes = (rows // 4, rows) if rows >= 16 else (rows,)
        shortest, *_ = chunks = Options().chunks
        longest = min(model.context_length, max(room, asked))
        options = Options(
            rows=rows,
            row_sizes=sizes,
            capacity=longest,
            pool_bytes=int(section.pool_gb * 2**30),
            chunks=(shortest,) if section.max_prompt <= shortest else chunks,
        )
        with jax.default_device(self._device):
            engine = Engine(loaded, options)
            if engine.capacity < longest:
                raise UserError(
                    f"rl.pool_gb = {section.pool_gb}: room for {engine.capacity:,} tokens, and a "
                    f"prompt with its rollout may take {longest:,}; give it more"
                )
            engine.warm_up()
        return engine

    def _own(self, values: Params) -> Params:
        """Copied: a trainer's update reuses the memory of its own."""
        return jax.device_put(jax.tree.map(jnp.copy, values), self._device)

    @property
    def number(self) -> int:
        """Of the next task."""
        return self._generation.number

    def pid(self) -> int:
        """Of its process."""
        return os.getpid()

    def run(self, groups: int) -> list[Finished]:
        """Generates until so many more groups are finished; one step of the engine for 0."""
        with jax.default_device(self._device):
            finished = self._generation.step()
            while len(finished) < groups:
                finished += self._generation.step()
        return finished

    def drain(self) -> list[Finished]:
        """Lets all that is under way come to its end."""
        with jax.default_device(self._device):
            return self._generation.drain()

    def swap(self, params: Params, biases: Biases, updates: int) -> None:
        """Goes on with other weights, in the middle of rollouts."""
        # The engine copies what it is given, on its device.
        params, biases = jax.device_put((params, biases), self._device)
        self._generation.swap(params, biases, updates)

    def generate(self, requests: Sequence[Request]) -> list[Result]:
        """Completes requests, with nothing else under way."""
        with jax.default_device(self._device):
            return self.engine.generate(requests)
