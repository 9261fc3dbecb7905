"""What a run cost: newly decoded tokens, and what had to be read for them.

    D(q) = sum_s sum_j g_{s,j} = sum_s n_s mean(g_s)

over stages s and their n_s rollouts of g tokens: no prompts, no tails that were copied into them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from zaya_jax.infer.rsa.policy import Sample


class StageCost(NamedTuple):
    """Tokens of a stage.

    Attributes:
      generations: n_s.
      decoded: sum of g.
      longest: largest g.
      prefilled: tokens of all prompts.
      longest_prompt: tokens of the longest prompt.
      longest_context: prompt and rollout together, the longest.
      unfinished: rollouts that their budget ended.
    """

    generations: int
    decoded: int
    longest: int
    prefilled: int
    longest_prompt: int
    longest_context: int
    unfinished: int

    @property
    def mean(self) -> float:
        return self.decoded / self.generations


def stage_cost(samples: Sequence[Sample]) -> StageCost:
    """Of a stage that is complete."""
    return StageCost(
        generations=len(samples),
        decoded=sum(sample.tokens for sample in samples),
        longest=max(sample.tokens for sample in samples),
        prefilled=sum(sample.prompt_tokens for sample in samples),
        longest_prompt=max(sample.prompt_tokens for sample in samples),
        longest_context=max(sample.prompt_tokens + sample.tokens for sample in samples),
        unfinished=sum(not sample.finished for sample in samples),
    )


def decoded(stages: Sequence[Sequence[Sample]]) -> int:
    """D(q)."""
    return sum(stage_cost(samples).decoded for samples in stages)
