"""From tasks to a batch: generation, judging, and the buffer until it has enough to learn from."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from zaya_jax.config.rl import RL
from zaya_jax.errors import UserError
from zaya_jax.rl import buffer as buffers
from zaya_jax.rl.buffer import Buffer
from zaya_jax.rl.generation import Finished
from zaya_jax.rl.judging import Judged, Model, judge
from zaya_jax.rl.rewards.score import Scorer
from zaya_jax.rl.rollout import Group
from zaya_jax.rl.workers import Rollouts

PATIENCE = 100
"""Batches' worth of groups that may pass without one to learn from."""


IN_VAIN = 16
"""Groups that may lose all their rewards, one after the other; a batch at least."""


class Collected(NamedTuple):
    """A batch, and what had happened when it was full.

    Attributes:
      groups: to learn from.
      counts: over the whole stage, by name.
      seconds: of generating and judging, over this start.
      generated: tokens decoded, over this start.
      evicted, stale: groups that the buffer lost, over the whole stage.
    """

    groups: tuple[Group, ...]
    counts: Counter[str]
    seconds: float
    generated: int
    evicted: int
    stale: int


class Collector:
    """Holds all that generation changes; whoever calls it has it to themselves.

    Attributes:
      buffer: groups that wait.
      counts: what happened so far, by name.
      seconds: of generating and judging.
    """

    def __init__(
        self,
        rollouts: Rollouts,
        scorer: Scorer,
        section: RL,
        buffer: Buffer,
        counts: Mapping[str, int],
        say: Callable[[str], None],
        reward_model: Model | None = None,
    ):
        """Args:
        rollouts: asks and samples.
        scorer: judges.
        section: the config.
        buffer, counts: to go on with.
        say: tells a person something.
        reward_model: see `judge`.
        """
        self._reward_model = reward_model
        self._rollouts, self._scorer, self._section = rollouts, scorer, section
        self._say, self._told = say, set[str]()
        self.buffer, self.counts, self.seconds = buffer, Counter(counts), 0.0
        self._in_vain = 0
        self._decoded = self.counts["decoded"]

    @property
    def generated(self) -> int:
        """Tokens decoded in this start."""
        return self.counts["decoded"] - self._decoded

    def batch(
        self, version: int, stop: Callable[[], bool], tick: Callable[[], None] = lambda: None
    ) -> Collected | None:
        """Generates until there is a batch.

        Args:
          version: updates behind the policy that is to learn from it.
          stop: whether somebody wants an end.
          tick: called again and again.

        Returns:
          The batch, or None if there was to be an end.

        Raises:
          UserError: nothing to learn from, however long one waits.
        """
        section, passed = self._section, 0
        while not stop():
            groups, self.buffer = buffers.take(self.buffer, section.prompts, version)
            if groups is not None:
                lost = self.buffer.evicted, self.buffer.stale
                counts = Counter(self.counts)
                return Collected(groups, counts, self.seconds, self.generated, *lost)
            passed += self._take_in(self._rollouts.step)
            if passed > PATIENCE * section.prompts:
                old = self.buffer.stale > self.counts["uninformative"]
                raise UserError(
                    f"{passed:,} groups gave no batch of {section.prompts} to learn from: "
                    f"{self.counts['uninformative']:,} so far were all right or all wrong, "
                    f"{self.buffer.stale:,} grew too old. "
                    + ("Take a smaller rl.concurrent, or a larger rl.staleness" if old else
                       "Take easier or harder rl.tasks, or a larger rl.group")
                )  # fmt: skip
            tick()
        return None

    def drain(self) -> None:
        """Lets all that is under way come to its end."""
        self._take_in(self._rollouts.drain)

    def _take_in(self, generate: Callable[[], Sequence[Finished]]) -> int:
        """Judges what gets finished and puts what teaches into the buffer; how many groups."""
        began = time.monotonic()
        finished = generate()
        judged = self._judge(finished) if finished else None
        self.seconds += time.monotonic() - began
        if judged is None:
            return 0
        self._count(judged)
        if (graded := self._rollouts.graded) is not None:
            for asked, group in zip(finished, judged.groups, strict=True):
                known = group.rewards[~np.isnan(group.rewards)]
                graded.scored(asked.number, float(known.mean()) if known.size else 0.0, known.size)
        self.buffer = buffers.put(self.buffer, judged.kept)
        return len(judged.groups)

    def _judge(self, finished: Sequence[Finished]) -> Judged:
        graded = self._section.loss.advantage == "grpo"
        judged = judge(
            finished,
            self._scorer,
            self._reward_model,
            graded=graded,
            all_teach=not self._section.dynamic_sampling,
        )
        lost = all(np.isnan(group.rewards).all() for group in judged.groups)
        self._in_vain = self._in_vain + len(judged.groups) if lost else 0
        if self._in_vain >= max(self._section.prompts, IN_VAIN):
            said = "; ".join(judged.messages.values()) or "generation failed"
            raise UserError(f"{self._in_vain} groups in a row had no reward at all: {said}")
        return judged

    def _count(self, judged: Judged) -> None:
        rewards = np.concatenate([group.rewards for group in judged.groups])
        rollouts = [rollout for group in judged.groups for rollout in group.rollouts]
        counts = self.counts
        counts["groups"] += len(judged.groups)
        counts["uninformative"] += len(judged.groups) - len(judged.kept)
        counts["rollouts"] += len(rollouts)
        counts["reward"] += float(np.nansum(rewards))  # type: ignore[assignment]  # a sum
        counts["passed"] += judged.passed
        counts["loops"] += judged.loops
        counts["cut"] += sum(rollout.finish == "length" for rollout in rollouts)
        counts["decoded"] += sum(len(rollout.completion) for rollout in rollouts)
        counts["failures"] += sum(judged.failures.values())
        for kind, message in judged.messages.items():
            if kind not in self._told:
                self._told.add(kind)
                self._say(f"a verifier failed ({kind}): {message}")
