"""Router kinds: ZAYA1's (`mlp_eda`), the same without depth averaging (`mlp`), and `linear`.

A kind is one function `kind(param, x, state, model)`. It makes the logits of each token, from
parameters that it names as it goes; softmax, biased choice and counts are the same for all.
docs/extending.md walks through adding one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.router import Routing, Weights, choose, router
from zaya_jax.config import Model
from zaya_jax.config.kinds import ROUTER_KINDS, find
from zaya_jax.errors import UserError
from zaya_jax.model.numerics import Numerics
from zaya_jax.model.parameter import BalancingBias, Declare, Init, normal, ones, zeros


class Param(Protocol):
    """Declares a parameter when the network is built, and reads it whenever it runs."""

    def __call__(
        self,
        name: str,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        init: Init | None = None,
        *,
        hf: str | None = None,
    ) -> jax.Array:
        """The parameter's value, in the dtype it is stored in.

        Args:
          name: unique within the router.
          shape: a matrix is [in, out].
          axes: their logical names (see docs/architecture.md), or None.
          init: of its first value; by default a Gaussian of `model.init_std` for a matrix, zeros
            for a vector.
          hf: its name in a Hugging Face file, relative to the router; `name` by default.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Fused:
    """Logits that the fused op of `pallas_kernels.router` makes, from these weights.

    carries: whether the next layer's router reads the hidden state of this one.
    """

    weights: Weights
    carries: bool = False


# From x [T, D] and the state [T, R] of the layer before (None in the first layer, or without one):
# the logits [T, classes] and the state for the next layer or None, or the weights of the fused op.
# Logits are to be computed and returned in the dtype that the policy has for `router_softmax`: what
# was rounded to the activation dtype before, no later cast brings back.
Kind = Callable[
    [Param, jax.Array, jax.Array | None, Model], Fused | tuple[jax.Array, jax.Array | None]
]


def kind_of(model: Model) -> Kind:
    """What `router.kind` names.

    Raises:
      UserError: it is no function.
    """
    kind = find(ROUTER_KINDS, model.router.kind)
    if isinstance(kind, type) or not callable(kind):
        raise UserError(f"model.router.kind = {model.router.kind!r}: expected a function")
    return kind


def classes(model: Model) -> int:
    """Classes of a router: the experts, and the skip class where there is one."""
    return model.router.experts + (model.router.skip != "none")


def linear(param: Param, x: jax.Array, state: jax.Array | None, model: Model) -> Fused:
    """A matrix."""
    others = (None,) * 8
    return Fused(Weights(*others, _out(param, model, model.hidden_size, "embed")))


def mlp(param: Param, x: jax.Array, state: jax.Array | None, model: Model) -> Fused:
    """Down-projection, norm, `router.depth` hidden layers (report eq 1 to 3)."""
    return Fused(_mlp(param, model, None))


def mlp_eda(param: Param, x: jax.Array, state: jax.Array | None, model: Model) -> Fused:
    """`mlp` on an average over depth: the layer before's state joins the down-projection's."""
    scale = None
    if state is not None:
        R = model.router.width
        scale = param("state_scale", (R,), ("router",), ones, hf="router_states_scale")
    return Fused(_mlp(param, model, scale), carries=True)


def _mlp(param: Param, model: Model, state_scale: jax.Array | None) -> Weights:
    D, R = model.hidden_size, model.router.width

    def vector(name: str, hf: str, init: Init = zeros) -> jax.Array:
        return param(name, (R,), ("router",), init, hf=hf)

    def hidden(i: int) -> tuple[jax.Array | None, jax.Array | None]:
        """Weight and bias of hidden layer i, counted from 1."""
        if i > model.router.depth:
            return None, None
        hf = f"router_mlp.fc{i}"
        matrix = param(f"fc{i}", (R, R), ("router", None), hf=f"{hf}.weight")
        return matrix, vector(f"fc{i}_bias", f"{hf}.bias")

    (fc1, fc1_bias), (fc2, fc2_bias) = hidden(1), hidden(2)
    return Weights(
        down=param("down", (D, R), ("embed", "router"), hf="down_proj.weight"),
        down_bias=vector("down_bias", "down_proj.bias"),
        state_scale=state_scale,
        norm=vector("norm", "router_mlp.norm.weight", ones),
        fc1=fc1,
        fc1_bias=fc1_bias,
        fc2=fc2,
        fc2_bias=fc2_bias,
        out=_out(param, model, R, "router"),
        deeper=tuple(hidden(i) for i in range(3, model.router.depth + 1)) or None,
    )


def _out(param: Param, model: Model, width: int, axis: str) -> jax.Array:
    shape, axes = (width, classes(model)), (axis, "experts")
    return param("out", shape, axes, hf="router_mlp.out_proj.weight")


class _Declared(NamedTuple):
    """A parameter that a kind named."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Init | None
    hf: str


def _declared(model: Model, *, first: bool) -> list[_Declared]:
    """The parameters of a router: what its kind names when it is run, without numbers, on a token.

    Raises:
      UserError: a kind that names a parameter twice, that returns no logits and state, or
        whose logits are not [T, classes].
    """
    kind, found = kind_of(model), dict[str, _Declared]()

    def param(name, shape, axes, init=None, *, hf=None) -> jax.Array:
        if name in found:
            raise UserError(f"router kind {model.router.kind!r} names {name!r} twice")
        found[name] = _Declared(name, shape, axes, init, hf or name)
        return jnp.zeros(shape, model.param_dtype)

    def run(x: jax.Array, state: jax.Array | None) -> jax.Array | None:
        """The state for the next layer."""
        scores = kind(param, x, state, model)
        if isinstance(scores, Fused):
            down = scores.weights.down if scores.carries else None
            return None if down is None else x @ down.astype(x.dtype)
        if not isinstance(scores, tuple) or len(scores) != 2:
            raise UserError(
                f"router kind {model.router.kind!r} returns {type(scores).__name__}; expected "
                "(logits, state), or Fused"
            )
        logits, state = scores
        if logits.shape != (len(x), classes(model)):
            raise UserError(
                f"router kind {model.router.kind!r} gives logits of shape {logits.shape}; expected "
                f"{(len(x), classes(model))}: tokens, and experts with the skip class if any"
            )
        return state

    x = jax.ShapeDtypeStruct((1, model.hidden_size), jnp.dtype(model.activation_dtype))
    state = jax.eval_shape(lambda x: run(x, None), x)
    if not first:
        found.clear()
        jax.eval_shape(lambda x, state: run(x, state), x, state)
    return list(found.values())


def initial_biases(model: Model):
    """Init of the balancing biases: zeros, and the skip class's fixed bias in the last place."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        biases = jnp.zeros(shape, dtype)
        return biases if model.router.skip == "none" else biases.at[-1].set(model.router.skip_bias)

    return init


def replay(routing: Routing, index: jax.Array, live: jax.Array | None) -> Routing:
    """The routing as if each token had chosen `index` (report IV-D, router replay).

    What the choices weigh is still the router's own probability of them, and differentiable.

    Args:
      routing: what the router would choose.
      index: [T, k] classes; it is not checked that there are such.
      live: [T] bool; None means all.
    """
    classes = routing.probabilities.shape[-1]
    weight = jnp.take_along_axis(routing.probabilities, index, axis=-1)
    if live is not None:
        index = jnp.where(live[:, None], index, classes)
    counts = jnp.sum(index.reshape(-1, 1) == jnp.arange(classes), axis=0, dtype=jnp.int32)
    return routing._replace(index=index, weight=weight.astype(routing.weight.dtype), counts=counts)


class Router(nnx.Module):
    """Chooses experts per token (report eq 1 to 5). The first layer has no state to read."""

    def __init__(self, model: Model, declare: Declare, *, first: bool):
        self.model, self.numerics = nnx.static(model), nnx.static(Numerics.of(model))
        self.biases = declare(
            (classes(model),),
            ("experts",),
            name="mlp.gate.balancing_biases",
            init=initial_biases(model),
            group="balance",
            kind=BalancingBias,
            dtype=jnp.promote_types(model.param_dtype, jnp.float32),
        )
        for name, shape, axes, init, hf in _declared(model, first=first):
            if hasattr(self, name):
                raise UserError(f"router kind {model.router.kind!r}: {name!r} is no free name")
            matrix = len(shape) > 1
            variable = declare(
                shape,
                axes,
                name=f"mlp.gate.{hf}",
                init=init or (normal(model.init_std) if matrix else zeros),
                group="matrix" if matrix else "vector",
                layout="transposed" if matrix else "same",
            )
            setattr(self, name, variable)

    def __call__(self, x: jax.Array, state: jax.Array | None, live: jax.Array | None) -> Routing:
        """Args: x [T, D] normed; state [T, R] of the layer before, or None; live [T] bool."""

        def param(name, shape, axes, init=None, *, hf=None) -> jax.Array:
            return getattr(self, name)[...]

        model, softmax_dtype = self.model, self.numerics.dtype("router_softmax")
        scores = kind_of(model)(param, x, state, model)
        if not isinstance(scores, Fused):
            logits, state = scores
            return choose(
                logits.astype(softmax_dtype),
                state,
                self.biases[...],
                live,
                top_k=model.router.top_k,
                weight_dtype=x.dtype,
            )
        routing = router(
            x,
            state,
            scores.weights,
            self.biases[...],
            live,
            top_k=model.router.top_k,
            eps=model.norm_eps,
            norm_dtype=self.numerics.dtype("norm"),
            softmax_dtype=softmax_dtype,
            implementation=model.ops.router,
        )
        # Only depth averaging reads the state; a scan need not carry it for the other kinds.
        return routing if scores.carries else routing._replace(state=None)
