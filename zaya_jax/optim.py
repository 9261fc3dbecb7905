"""The optimizer of the parameters: a rule for each group, a schedule, a bound on the gradient.

A parameter's group was declared with it (`zaya_jax.model.parameter`); this file says what each
group gets. With G clipped by the norm of all gradients together, a parameter p moves by

    p <- p - rate(step) factor (rule(G) + decay p)

where rule is Muon for matrices and AdamW for the rest (`optim.kind = muon`), or AdamW for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from zaya_jax.config import Optim
from zaya_jax.model.functional import Declaration
from zaya_jax.model.parameter import GROUPS
from zaya_jax.muon import alone, scale_by_muon

DECAYED = frozenset({"matrix"})
"""Groups with weight decay. Norms, scales, temperatures and biases have a natural place that is not
zero; rows of the embedding that a batch does not contain would only shrink."""
GATE_UP = "experts.gate_up"
"""End of the path of the experts' gate and up matrices, stored side by side."""


def cosine(optim: Optim, step: jax.Array, steps: int) -> jax.Array:
    """Share of the fall that is still to come: half a wave from the warm-up to the last step."""
    span = max(steps - 1 - optim.warmup_steps, 1)
    progress = jnp.clip((step - optim.warmup_steps) / span, 0.0, 1.0)
    return (1 + jnp.cos(math.pi * progress)) / 2


def wsd(optim: Optim, step: jax.Array, steps: int) -> jax.Array:
    """Warm-up, stable, decay: 1 until the last `decay_fraction` of the steps, then a line to 0."""
    span = max(round(optim.decay_fraction * steps), 1)
    return jnp.clip((steps - 1 - step) / span, 0.0, 1.0)


def constant(optim: Optim, step: jax.Array, steps: int) -> jax.Array:
    """1."""
    return jnp.ones_like(step, float)


SHAPES: Mapping[str, Callable[[Optim, jax.Array, int], jax.Array]] = {
    "cosine": cosine,
    "wsd": wsd,
    "constant": constant,
}


def schedule(optim: Optim, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Learning rate of each step, from 0: linear warm-up, then `optim.schedule`.

    The first step already learns (1 / warmup_steps of the peak); the last one, `steps - 1`, has
    `final_fraction` of the peak, and so has every later one (except under `constant`).
    """

    def learning_rate(step: jax.Array) -> jax.Array:
        warm = jnp.minimum((step + 1) / max(optim.warmup_steps, 1), 1.0)
        share = SHAPES[optim.schedule](optim, step, steps)
        return optim.learning_rate * warm * (share + (1 - share) * optim.final_fraction)

    return learning_rate


def rule_of(optim: Optim, declaration: Declaration) -> str:
    """Name of the rule that moves a parameter: `adamw`, `muon`, or `muon of halves`."""
    if optim.kind == "adamw" or declaration.group != "matrix":
        return "adamw"
    halves = optim.muon.split_gate_up and declaration.path.endswith(GATE_UP)
    return "muon of halves" if halves else "muon"


def group_rule(
    optim: Optim, group: str, rule: str, matrices: Callable[..., jax.Array] = alone
) -> optax.GradientTransformation:
    """What one group gets under one rule, before the learning rate; a factor of 0 freezes it."""
    factor = getattr(optim.factors, group)
    if factor == 0:
        return optax.set_to_zero()
    parts = [
        optax.scale_by_adam(optim.b1, optim.b2, optim.eps)
        if rule == "adamw"
        else scale_by_muon(optim.muon, halves=rule == "muon of halves", run=matrices)
    ]
    if group in DECAYED:
        parts.append(optax.add_decayed_weights(optim.weight_decay))
    return optax.chain(*parts, optax.scale(factor))


def optimizer(
    optim: Optim,
    steps: int,
    declarations: Mapping[str, Declaration],
    matrices: Callable[..., jax.Array] = alone,
) -> optax.GradientTransformation:
    """The optimizer of a flat dict of parameters.

    Args:
      optim: see `zaya_jax.config.Optim`.
      steps: optimizer steps of the run, which the schedule spans.
      declarations: of what is trained, by path; its keys are those of the dict.
      matrices: how Muon goes through those of a leaf; see `scale_by_muon`.

    Returns:
      A transformation whose updates are added to the parameters. A leaf's state has the leaf's
      shape: first and second moment under AdamW, momentum under Muon, none where that is 0.
    """
    kinds = {path: (d.group, rule_of(optim, d)) for path, d in declarations.items()}
    return optax.chain(
        optax.clip_by_global_norm(optim.clip_norm),
        optax.partition(
            {
                f"{group}, {rule}": group_rule(optim, group, rule, matrices)
                for group, rule in kinds.values()
            },
            {path: f"{group}, {rule}" for path, (group, rule) in kinds.items()},
        ),
        optax.scale_by_learning_rate(schedule(optim, steps)),
    )


def groups(declarations: Mapping[str, Declaration]) -> Mapping[str, list[Declaration]]:
    """The declarations of each optimizer group that has any, in the order of `GROUPS`."""
    found: dict[str, list[Declaration]] = {name: [] for name in GROUPS}
    for declaration in declarations.values():
        found[declaration.group].append(declaration)
    return {name: members for name, members in found.items() if members}


def describe(optim: Optim, declarations: Mapping[str, Declaration]) -> str:
    """A table of the groups, a line for each rule in one: tensors, parameters, what they get."""
    lines = []
    for name, members in groups(declarations).items():
        factor = getattr(optim.factors, name)
        decay = optim.weight_decay if name in DECAYED else 0.0
        gets = f"decay {decay:g}, rate x {factor:g}" if factor else "frozen"
        for rule in sorted({rule_of(optim, d) for d in members}):
            ours = [d for d in members if rule_of(optim, d) == rule]
            size = sum(math.prod(d.shape) for d in ours)
            lines.append(f"{name:<12} {len(ours):>4} tensors {size:>14,}  {rule}, {gets}")
    return "\n".join(lines)
