"""What answers prompts: anything that takes asks and gives samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from zaya_jax.infer.rsa.settings import Sampling

Message = Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Ask:
    """One rollout that is wanted.

    Attributes:
      messages: the conversation that is to be answered.
      max_tokens: most tokens of the answer.
      sampling: how they are chosen.
      seed: of the draws; with all else, it decides the answer.
    """

    messages: tuple[Message, ...]
    max_tokens: int
    sampling: Sampling
    seed: int


@dataclasses.dataclass(frozen=True)
class Sample:
    """One rollout.

    Attributes:
      text: all that was written, think tags included, without what ended it.
      tokens: how many were decoded, the one that ended it included.
      prompt_tokens: how many the prompt had.
      finish: `eos`, `stop`, or `length` if the budget ended it.
      thinking: whether the prompt had opened the think block.
    """

    text: str
    tokens: int
    prompt_tokens: int
    finish: str
    thinking: bool = False

    @property
    def finished(self) -> bool:
        """Whether it ended by itself."""
        return self.finish != "length"


class Policy(Protocol):
    """Answers asks, in any order and together as it sees fit; a function of each ask alone."""

    def __call__(
        self,
        asks: Sequence[Ask],
        done: Callable[[int, Sample], None],
        progress: Callable[[int, str], None] | None = None,
    ) -> None:
        """Args:
        asks: what is wanted.
        done: called once for each ask, with its number, when it is answered.
        progress: called with a number and new text, as it becomes certain, if the policy can.
        """
        ...
