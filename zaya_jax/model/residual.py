"""Learned residual scaling (report eq 6): both streams get a scale and a bias of their own.

As the released weights define it, the bias comes before the scale:
`stream' = (mixer + b_h) * s_h + (stream + b_r) * s_r`.
"""

from __future__ import annotations

import jax
from flax import nnx

from pallas_kernels.residual_norm import residual_norm
from zaya_jax.config import Model
from zaya_jax.model.numerics import Numerics
from zaya_jax.model.parameter import Declare, ones, zeros


class ResidualScaling(nnx.Module):
    """Merges a mixer's output into the residual stream."""

    def __init__(self, model: Model, declare: Declare, name: str):
        self.numerics = nnx.static(Numerics.of(model))
        self.eps, self.implementation = model.norm_eps, model.ops.residual_norm

        def vector(field: str, init) -> nnx.Variable:
            hf = f"{name}.{field}"
            return declare((model.hidden_size,), ("embed",), name=hf, init=init, group="vector")

        self.learned = model.residual_scaling
        if self.learned:
            self.mixer_scale = vector("hidden_states_scale", ones)
            self.mixer_bias = vector("hidden_states_bias", zeros)
            self.residual_scale = vector("residual_scale", ones)
            self.residual_bias = vector("residual_bias", zeros)

    def __call__(
        self, mixer: jax.Array, stream: jax.Array, norm_weight: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        """The new stream, and its RMSNorm under `norm_weight` where one is given.

        Args:
          mixer: [..., D] in the activation dtype.
          stream: [..., D] in the policy's `residual` dtype.
          norm_weight: [D] of the norm that reads the new stream.
        """
        scales = None
        if self.learned:
            scales = (
                self.mixer_scale[...],
                self.mixer_bias[...],
                self.residual_scale[...],
                self.residual_bias[...],
            )
        n = self.numerics
        return residual_norm(
            mixer,
            stream,
            scales,
            norm_weight,
            eps=self.eps,
            merge_dtype=n.dtype("residual_merge"),
            stream_dtype=n.dtype("residual"),
            norm_dtype=n.dtype("norm"),
            implementation=self.implementation,
        )
