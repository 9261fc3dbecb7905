"""Steps that are not taken: those without numbers, and those whose gradient is a spike.

The verdict falls inside the jitted step, from the numbers of that step and the `FaultState`, so it
is part of what a run computes: a run that was killed and resumed refuses the same steps. What
happens after `faults.limit` refusals in a row is the loop's (`zaya_jax.train.loop`).
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from zaya_jax.config import Faults


@flax.struct.dataclass
class FaultState:
    """What is remembered of steps taken and refused; scalars.

    Attributes:
      accepted: int32, steps taken. The optimizer and its schedule count these, not the others.
      skipped: int32, steps refused, those before a rollback among them.
      in_a_row: int32, steps refused since the last one that was taken, or since a rollback.
      mean_norm: float32, mean gradient norm of about the last `faults.window` steps taken.
      rollbacks: int32, times that the run went back to a checkpoint.
    """

    accepted: jax.Array
    skipped: jax.Array
    in_a_row: jax.Array
    mean_norm: jax.Array
    rollbacks: jax.Array


def init() -> FaultState:
    """Nothing taken, nothing refused."""
    # An array each: the step gives the buffers away, and a buffer can be given only once.
    counters = {name: jnp.zeros((), jnp.int32) for name in _COUNTERS}
    return FaultState(mean_norm=jnp.zeros((), jnp.float32), **counters)


_COUNTERS = ("accepted", "skipped", "in_a_row", "rollbacks")


def accepts(
    faults: Faults, state: FaultState, numbers: tuple[jax.Array, ...], norm: jax.Array
) -> jax.Array:
    """Whether a step is to be taken.

    Args:
      numbers: scalars that must be finite: loss, norms of gradients and of updates. Finite updates
        of finite weights leave finite weights.
      norm: of the whole gradient, before clipping.

    Returns:
      bool scalar.
    """
    finite = jnp.isfinite(norm)
    for number in numbers:
        finite &= jnp.isfinite(number)
    if not faults.spike:
        return finite
    judged = state.accepted >= faults.window
    return finite & ~(judged & (norm > faults.spike * state.mean_norm))


def after(faults: Faults, state: FaultState, accept: jax.Array, norm: jax.Array) -> FaultState:
    """The state after a step that was taken (`accept`) or refused."""
    # The plain mean at first, then an exponential one: each step weighs 1 / window.
    weight = 1 / jnp.minimum(state.accepted + 1, faults.window)
    mean = state.mean_norm + weight * (norm.astype(jnp.float32) - state.mean_norm)
    one = accept.astype(jnp.int32)
    return FaultState(
        accepted=state.accepted + one,
        skipped=state.skipped + 1 - one,
        in_a_row=(state.in_a_row + 1) * (1 - one),
        mean_norm=jnp.where(accept, mean, state.mean_norm),
        rollbacks=state.rollbacks,
    )


def rolled_back(restored: FaultState, skipped: jax.Array, rollbacks: jax.Array) -> FaultState:
    """The state with which a run goes on from a checkpoint: what it held, and what led back to it.

    Args:
      restored: of the checkpoint.
      skipped, rollbacks: of the step that was one too many.
    """
    return dataclasses.replace(
        restored,
        skipped=jnp.asarray(skipped, jnp.int32),
        in_a_row=jnp.zeros((), jnp.int32),
        rollbacks=jnp.asarray(rollbacks, jnp.int32) + 1,
    )
