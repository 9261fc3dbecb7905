"""Tasks and submissions: what is asked, and what a verifier gets to see.

Verifiers import this and run in processes of their own, so it brings no jax along.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

VERIFIERS = {
    "reasoning_gym": "zaya_jax.rl.rewards.reasoning_gym:verify",
    "math": "zaya_jax.rl.rewards.math_verify:verify",
    "exact": "zaya_jax.rl.rewards.exact:verify",
    "any": "zaya_jax.rl.rewards.anything:verify",
}
"""Names, and the functions `(Submission) -> float` that they stand for."""


@dataclasses.dataclass(frozen=True)
class Task:
    """A prompt whose answers can be verified.

    Attributes:
      prompt: what the user says.
      answer: the right answer, as the verifier wants it.
      verifier: a name of `VERIFIERS`, or `module:function`.
      source: data set or environment.
      name: tells it from others of its source.
      metadata: what else the verifier needs; plain data.
    """

    prompt: str
    answer: str
    verifier: str
    source: str
    name: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Submission:
    """A response to a task, as a verifier sees it.

    Attributes:
      response: text, think tags and all.
      answer: the task's.
      metadata: the task's.
      thinking: whether the prompt had opened the think block.
    """

    response: str
    answer: str
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    thinking: bool = False
