"""What generation hands to training: tokens, how likely they were, and who chose them.

Per token: the policy's version (weights are swapped while it generates), its log-probability then,
and the experts that its routers chose, which the trainer's forward pass is pinned to.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from zaya_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Rollout:
    """A response to a prompt.

    Attributes:
      prompt: [p] int32.
      completion: [n] int32, with the token that ended it, if one did.
      logprobs: [n] float32, nats, of the completion's tokens when they were sampled.
      versions: [n] int32, the number of updates behind the weights that sampled each token.
      finish: `eos`, `stop` or `length`.
      routes: [p + n - 1, L] uint8, the expert of each token that a trainer reads (the last one is
        only predicted) in each layer; None if they were not recorded.
    """

    prompt: np.ndarray
    completion: np.ndarray
    logprobs: np.ndarray
    versions: np.ndarray
    finish: str = "eos"
    routes: np.ndarray | None = None

    @property
    def inputs(self) -> int:
        """Positions that it takes in a row of training: p + n - 1."""
        return len(self.prompt) + len(self.completion) - 1


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """The G rollouts of one prompt, and what they earned.

    Attributes:
      task: names the prompt.
      source: data source or environment, whose solve rates are followed.
      rollouts: G of them.
      rewards: [G] float64; NaN where the verifier failed, which takes the rollout out of the group.
    """

    task: str
    source: str
    rollouts: tuple[Rollout, ...]
    rewards: np.ndarray


def check(
    rollout: Rollout, *, budget: int, layers: int | None = None, experts: int | None = None
) -> None:
    """Refuses what a trainer must not learn from.

    Args:
      rollout: as an engine gave it.
      budget: most tokens of the completion.
      layers: L, if routes are to be replayed; None for whatever there is.
      experts: routes must be below it.

    Raises:
      UserError: an empty or too long completion; log-probabilities, versions or routes that are not
        of its length; a log-probability that is none; missing routes, or experts that there
        are not.
    """
    tokens = len(rollout.completion)
    if not len(rollout.prompt):
        raise UserError("a rollout has an empty prompt: there is nothing to predict its first from")
    if not 1 <= tokens <= budget:
        raise UserError(f"a rollout has {tokens} tokens; the budget of a response is 1 to {budget}")
    for name in ("logprobs", "versions"):
        if (found := len(getattr(rollout, name))) != tokens:
            raise UserError(f"a rollout of {tokens} tokens has {found} {name}")
    if not (np.isfinite(rollout.logprobs).all() and (rollout.logprobs <= 1e-3).all()):
        raise UserError("a rollout has a log-probability above 0 or not finite")
    if rollout.routes is None:
        if layers is not None:
            raise UserError("a rollout has no routes, and router replay is on: record them")
        return
    expected = (rollout.inputs, rollout.routes.shape[-1] if layers is None else layers)
    if rollout.routes.shape != expected:
        raise UserError(
            f"the routes of a rollout have shape {rollout.routes.shape}; {len(rollout.prompt)} + "
            f"{tokens} - 1 tokens and {expected[1]} layers make {expected}"
        )
    if experts is not None and rollout.routes.size and rollout.routes.max() >= experts:
        raise UserError(f"routes name expert {rollout.routes.max()}; there are {experts}")


def staleness(group: Group, version: int) -> int:
    """Updates between the oldest token of a group and the policy that is to learn from it."""
    begun = [rollout.versions.min() for rollout in group.rollouts if rollout.versions.size]
    return version - int(min(begun, default=version))
