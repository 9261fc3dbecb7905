"""What a training step reports of itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zaya_jax.config import Model
from zaya_jax.model.block import RouterStats
from zaya_jax.model.functional import Biases, Declaration, Params

DEAD = 0.1
"""Share of an even load under which an expert counts as dead."""


class Metrics(NamedTuple):
    """What a step reports; float32 scalars but for those with a layer axis L.

    Attributes:
      loss: nats per weighted target.
      balance_loss: what the router's auxiliary and z-loss add to it, weighted.
      z_loss: what `train.z_loss` adds to it, weighted.
      tokens: weighted targets in the batch.
      grad_norm: global, before clipping.
      grad_norms: by optimizer group, before clipping; their squares add up to that of `grad_norm`.
      update_norms: by optimizer group, of what is added to the parameters.
      learning_rate: of this step, before the groups' factors.
      load_entropy: [L] entropy of the experts' loads over log E: 1 is a perfect balance,
        and what a single expert has.
      max_load, min_load: [L] largest and smallest share of the routed tokens that one expert got.
      dead_experts: [L] int32, experts with less than a tenth of an even load.
      skip_share: [L] share of all live tokens that took the skip class.
      routing_entropy: [L] mean entropy of a token's own distribution over the classes, in nats.
      residual_norm: [L] mean norm of a token's residual stream after the layer.
      max_bias, min_bias: [L] of the experts' balancing biases after the step.
      load: [L, E] share of the routed tokens that each expert got.
      accepted: bool, whether the step was taken.
      skipped, in_a_row, rollbacks: int32, see `faults.FaultState`, after the step.
      cursor: int32, number of the batch that comes next.
    """

    loss: jax.Array
    balance_loss: jax.Array
    z_loss: jax.Array
    tokens: jax.Array
    grad_norm: jax.Array
    grad_norms: dict[str, jax.Array]
    update_norms: dict[str, jax.Array]
    learning_rate: jax.Array
    load_entropy: jax.Array
    max_load: jax.Array
    min_load: jax.Array
    dead_experts: jax.Array
    skip_share: jax.Array
    routing_entropy: jax.Array
    residual_norm: jax.Array
    max_bias: jax.Array
    min_bias: jax.Array
    load: jax.Array
    accepted: jax.Array
    skipped: jax.Array
    in_a_row: jax.Array
    rollbacks: jax.Array
    cursor: jax.Array


UNWRITTEN = frozenset({"load", "accepted", "in_a_row"})
"""Fields that no line of `metrics.jsonl` has. A matrix a line would be most of the file: evaluation
lines have the loads, training lines only under `train.log_loads`. `skipped` says what the counters
say."""


def norms(declarations: Mapping[str, Declaration], tree: Params) -> dict[str, jax.Array]:
    """Euclidean norm of each optimizer group's values, in float32 at least."""
    squares: dict[str, jax.Array] = {}
    for path, value in tree.items():
        wide = value.astype(jnp.promote_types(value.dtype, jnp.float32))
        group = declarations[path].group
        squares[group] = squares.get(group, 0) + jnp.sum(jnp.square(wide))
    return {group: jnp.sqrt(total) for group, total in squares.items()}


def total_norm(by_group: Mapping[str, jax.Array]) -> jax.Array:
    """The norm of everything, from those of the groups."""
    return jnp.sqrt(sum((jnp.square(norm) for norm in by_group.values()), start=jnp.zeros(())))


def router_metrics(model: Model, stats: RouterStats) -> dict[str, jax.Array]:
    """The fields of `Metrics` that speak of routers and depth, from counts [L, classes]."""
    E = model.router.experts
    counts = stats.counts.astype(jnp.float32)
    routed, everything = jnp.sum(counts[:, :E], axis=1), jnp.sum(counts, axis=1)
    load = counts[:, :E] / jnp.maximum(routed, 1)[:, None]
    entropy = jnp.sum(jnp.where(load > 0, -load * jnp.log(load), 0), axis=1)
    dead = (load < DEAD / E) & (routed > 0)[:, None]
    return {
        "load": load,
        "load_entropy": entropy / math.log(E) if E > 1 else jnp.ones_like(entropy),
        "max_load": jnp.max(load, axis=1),
        "min_load": jnp.min(load, axis=1),
        "dead_experts": jnp.sum(dead, axis=1, dtype=jnp.int32),
        "skip_share": (everything - routed) / jnp.maximum(everything, 1),
        "routing_entropy": stats.entropy,
        "residual_norm": stats.residual_norm,
    }


def bias_metrics(
    model: Model, declarations: Mapping[str, Declaration], biases: Biases
) -> dict[str, jax.Array]:
    """`max_bias` and `min_bias`, [L] in the order of the layers."""
    rows: dict[int, jax.Array] = {}
    for path, declaration in declarations.items():
        layers = declaration.layers
        assert layers is not None
        stacked = isinstance(layers, tuple)
        for row, layer in enumerate(layers if isinstance(layers, tuple) else (layers,)):
            rows[layer] = biases[path][row] if stacked else biases[path]
    table = jnp.stack([rows[layer] for layer in sorted(rows)])[:, : model.router.experts]
    return {"max_bias": jnp.max(table, axis=1), "min_bias": jnp.min(table, axis=1)}
