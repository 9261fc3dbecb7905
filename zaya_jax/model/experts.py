"""SwiGLU experts, computed only for the tokens routed to them, and the skip class."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.grouped_matmul import experts
from pallas_kernels.router import Routing
from zaya_jax.config import Model
from zaya_jax.model.parameter import Declare, normal, stored
from zaya_jax.model.shard import WHOLE, Shard


class Experts(nnx.Module):
    """E experts of width F; gate and up projections are stored side by side, gate first."""

    def __init__(self, model: Model, declare: Declare):
        self.model = nnx.static(model)
        E, D, F = model.router.experts, model.hidden_size, model.expert_width
        init = normal(model.init_std)
        self.gate_up = declare(
            (E, D, 2 * F),
            ("experts", "embed", "expert_mlp"),
            name="mlp.experts.gate_up_proj",
            init=init,
            group="matrix",
            layout="transposed",
        )
        self.down = declare(
            (E, F, D),
            ("experts", "expert_mlp", "embed"),
            name="mlp.experts.down_proj",
            init=init,
            group="matrix",
            layout="transposed",
        )

    def __call__(self, x: jax.Array, routing: Routing, shard: Shard = WHOLE) -> jax.Array:
        """The weighted sum of each token's experts; x [T, D] -> [T, D].

        The skip class gives nothing under the rule `zero` (transformers) and the token itself times
        its probability under `passthrough` (SGLang, mlx-vlm, Primus).
        """
        y = shard.experts(
            functools.partial(experts, implementation=self.model.ops.grouped_matmul),
            x,
            routing.index,
            routing.weight,
            stored(self.gate_up, x.dtype),
            stored(self.down, x.dtype),
        )
        if self.model.router.skip == "passthrough":
            skipped = routing.index == self.model.router.experts
            y = y + x * jnp.sum(jnp.where(skipped, routing.weight, 0), axis=-1, keepdims=True)
        return y
