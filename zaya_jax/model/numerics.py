"""In which precision each part of the network computes: one policy instead of scattered casts."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from zaya_jax.config import Model

# The named fp32 set of the report (section IV-D). `residual` is the stream between the layers.
FP32_SET = frozenset(
    {"residual", "residual_merge", "norm", "qk_mean_norm", "rope", "router_softmax", "logits"}
)

PRESETS = {
    # What ZAYA was trained with.
    "training": FP32_SET,
    # The dtype flow of transformers' Zaya: an fp32 stream, all else in the activation dtype (norm
    # statistics and attention softmax are fp32 in both).
    "reference": frozenset({"residual"}),
}


@dataclasses.dataclass(frozen=True)
class Numerics:
    """The activation dtype, and the parts that compute in float32 at least."""

    activation_dtype: jnp.dtype
    fp32: frozenset[str]

    @classmethod
    def of(cls, model: Model) -> Numerics:
        """The policy that a model section names; `residual_in_fp32: false` leaves the fp32 set."""
        fp32 = PRESETS[model.numerics]
        if not model.residual_in_fp32:
            fp32 = fp32 - {"residual"}
        return cls(jnp.dtype(model.activation_dtype), fp32)

    def dtype(self, part: str):
        """The dtype in which a part computes: activation dtype, or float32 at least."""
        if part not in FP32_SET:
            raise KeyError(f"no part {part!r} in the numerics policy")
        if part in self.fp32:
            return jnp.promote_types(self.activation_dtype, jnp.float32)
        return self.activation_dtype
