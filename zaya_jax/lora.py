"""Low-rank adapters (arXiv 2106.09685): W + alpha/rank * A @ B in place of W; A and B are trained.

An adapter goes with a parameter of the model: `layers.0.attention.q` [in, out] gets
`layers.0.attention.q.lora_a` [in, r] and `layers.0.attention.q.lora_b` [r, out]; a stack of layers
or of experts keeps its leading axes in both. A starts as PEFT's does (uniform in +-1/sqrt(in)), B
at zero, so that training starts from the base. Adapters are float32 (float64 under float64),
whatever the base is stored in.

They are declared in the group `matrix`, for matrices they are: AdamW decays them, which draws the
weights towards the base and not towards zero; Muon would orthogonalise them, if asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from zaya_jax.config import Experiment, Lora, Model
from zaya_jax.model import functional
from zaya_jax.model.functional import Declaration, Params
from zaya_jax.model.parameter import Declare

A, B = ".lora_a", ".lora_b"

TARGETS: Mapping[str, tuple[str, ...]] = {
    "q": ("attention.q", "attention.q_down", "attention.q_up"),
    "k": ("attention.k", "attention.kv_down", "attention.k_up", "attention.k_rope"),
    "v": (
        "attention.v_current",
        "attention.v_delayed",
        "attention.v",
        "attention.kv_down",
        "attention.v_up",
    ),
    "o": ("attention.output",),
    "experts": ("experts.gate_up", "experts.down"),
}
"""The parameters of each name in `lora.targets`, by the end of their path. The latent of `mla` is
what both keys and values are made from, and belongs to either."""

# PEFT wraps the two parameters of one module one in the other, in the order of their registration.
_PEFT_MODULES = {
    "mlp.experts.gate_up_proj": "mlp.experts.base_layer",
    "mlp.experts.down_proj": "mlp.experts",
}


def targets(model: Model, lora: Lora) -> Mapping[str, Declaration]:
    """The declarations of the parameters that get an adapter, by path."""
    ends = tuple(f".{end}" for name in lora.targets for end in TARGETS[name])
    return {
        path: declaration
        for path, declaration in functional.declarations(model).items()
        if path.endswith(ends)
    }


def declarations(model: Model, lora: Lora) -> dict[str, Declaration]:
    """The declarations of the adapters, and of nothing else, by path.

    Their `name` is the one PEFT gives the tensor, relative to the layer.
    """
    return dict(_adapters(model, lora))


def _adapters(model: Model, lora: Lora) -> Iterator[tuple[str, Declaration]]:
    for path, base in targets(model, lora).items():
        *lead, width_in, width_out = base.shape
        *lead_axes, axis_in, axis_out = base.axes
        module = _PEFT_MODULES.get(base.name, base.name.removesuffix(".weight"))
        dtype = jnp.promote_types(base.dtype, jnp.float32)
        for end, letter, shape, axes in (
            (A, "A", (width_in, lora.rank), (axis_in, "rank")),
            (B, "B", (lora.rank, width_out), ("rank", axis_out)),
        ):
            yield (
                path + end,
                dataclasses.replace(
                    base,
                    path=path + end,
                    name=f"{module}.lora_{letter}.weight",
                    shape=(*lead, *shape),
                    axes=(*lead_axes, *axes),
                    dtype=dtype,
                ),
            )


def trained(experiment: Experiment) -> Mapping[str, Declaration]:
    """What the optimizer moves: every parameter, or the adapters where `lora.rank` is not 0."""
    if experiment.lora.rank == 0:
        return functional.declarations(experiment.model)
    return declarations(experiment.model, experiment.lora)


def init(model: Model, lora: Lora, key: jax.Array) -> Params:
    """The first adapters; a pure function, the same for scanned and unrolled layers."""

    def draw(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        bound = shape[-2] ** -0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    def first(d: Declaration) -> jax.Array:
        if d.path.endswith(B):
            return jnp.zeros(d.shape, d.dtype)
        stacked = isinstance(d.layers, tuple)
        declare = Declare(key, d.dtype, d.layers)
        shape, axes = d.shape[stacked:], d.axes[stacked:]
        return declare(shape, axes, name=d.name, init=draw, group=d.group)[...]

    return {path: first(d) for path, d in declarations(model, lora).items()}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adapted:
    """A weight with its adapter, put together where it is read: `x[...]` is W + scale * A @ B.

    The model reads every parameter so, layer by layer. In the place of an array in `Params`, this
    leaves both the sum and its gradient, which are of the size of W, to live no longer than the
    layer that is computed.

    Attributes:
      weight: [..., in, out].
      a, b: [..., in, r] and [..., r, out].
      scale: alpha / rank.
    """

    weight: jax.Array
    a: jax.Array
    b: jax.Array
    scale: float = dataclasses.field(metadata={"static": True})

    def __getitem__(self, index: Any) -> jax.Array:
        """The sum, computed in float32 at least and rounded once to the weight's dtype."""
        # Each may itself be something that is put together where it is read.
        weight, change = self.weight[...], self.scale * jnp.matmul(self.a[...], self.b[...])
        return (weight + change).astype(weight.dtype)[index]


def attach(model: Model, lora: Lora, base: Params, adapters: Params) -> dict[str, Any]:
    """The parameters for `functional.merge`, each adapted one as an `Adapted`.

    Args:
      base: all parameters of the model.
      adapters: as `declarations` says.

    Raises:
      KeyError: one of those is missing.
    """
    scale = lora.alpha / lora.rank
    adapted = {
        path: Adapted(base[path], adapters[path + A], adapters[path + B], scale)
        for path in targets(model, lora)
    }
    return {**base, **adapted}


def merge(model: Model, lora: Lora, base: Params, adapters: Params) -> Params:
    """The parameters as one set of arrays, to be exported or run without adapters.

    Takes the same and raises the same as `attach`. Differentiable, but at the price of every
    adapted weight and of its gradient at once; a loss uses `attach`.
    """
    return {
        path: _whole(value) if isinstance(value, Adapted) else value
        for path, value in attach(model, lora, base, adapters).items()
    }


def _whole(x: Adapted) -> jax.Array:
    """The sum, a matrix at a time: products of a whole stack at once would take twice its room."""
    return x[...] if x.weight.ndim == 2 else jax.lax.map(_whole, x)
