"""The optimizer of the parameters: AdamW by group, a schedule, a bound on the gradient.

A parameter's group was declared with it (`zaya_jax.model.parameter`); this file says what each
group gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from zaya_jax.config import Experiment, Model, Optim
from zaya_jax.model.functional import Declaration, declarations
from zaya_jax.model.parameter import GROUPS

DECAYED = frozenset({"matrix"})
"""Groups with weight decay. Norms, scales, temperatures and biases have a natural place that is not
zero; rows of the embedding that a batch does not contain would only shrink."""


def schedule(optim: Optim, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Learning rate of each step, from 0: linear warm-up, then cosine or constant.

    The first step already learns (1 / warmup_steps of the peak); the last one, `steps - 1`, has
    `final_fraction` of the peak under `cosine`.
    """

    def learning_rate(step: jax.Array) -> jax.Array:
        warm = jnp.minimum((step + 1) / max(optim.warmup_steps, 1), 1.0)
        if optim.schedule == "constant":
            return optim.learning_rate * warm
        span = max(steps - 1 - optim.warmup_steps, 1)
        progress = jnp.clip((step - optim.warmup_steps) / span, 0.0, 1.0)
        share = (1 + jnp.cos(math.pi * progress)) / 2
        return optim.learning_rate * warm * (share + (1 - share) * optim.final_fraction)

    return learning_rate


def optimizer(experiment: Experiment) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW; for the flat dict of parameters."""
    optim = experiment.optim
    decayed = {
        path: declaration.group in DECAYED
        for path, declaration in declarations(experiment.model).items()
    }
    return optax.chain(
        optax.clip_by_global_norm(optim.clip_norm),
        optax.adamw(
            schedule(optim, experiment.train.steps),
            optim.b1,
            optim.b2,
            optim.eps,
            weight_decay=optim.weight_decay,
            mask=decayed,
        ),
    )


def groups(model: Model) -> Mapping[str, list[Declaration]]:
    """The declarations of each optimizer group that the model has."""
    found: dict[str, list[Declaration]] = {name: [] for name in GROUPS}
    for declaration in declarations(model).values():
        found[declaration.group].append(declaration)
    return {name: members for name, members in found.items() if members}


def describe(experiment: Experiment) -> str:
    """A table of the groups, one line each: tensors, parameters, and what they get."""
    lines = []
    for name, members in groups(experiment.model).items():
        size = sum(math.prod(d.shape) for d in members)
        decay = experiment.optim.weight_decay if name in DECAYED else 0.0
        lines.append(f"{name:<12} {len(members):>4} tensors {size:>14,}  adamw, decay {decay:g}")
    return "\n".join(lines)
