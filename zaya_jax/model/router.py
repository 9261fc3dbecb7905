"""Router kinds: ZAYA1's (`mlp_eda`), the same without depth averaging (`mlp`), and `linear`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.router import Routing, Weights, router
from zaya_jax.config import Model
from zaya_jax.model.numerics import Numerics
from zaya_jax.model.parameter import BalancingBias, Declare, normal, ones, zeros


def classes(model: Model) -> int:
    """Classes of a router: the experts, and the skip class where there is one."""
    return model.router.experts + (model.router.skip != "none")


def initial_biases(model: Model):
    """Init of the balancing biases: zeros, and the skip class's fixed bias in the last place."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        biases = jnp.zeros(shape, dtype)
        return biases if model.router.skip == "none" else biases.at[-1].set(model.router.skip_bias)

    return init


class Router(nnx.Module):
    """Chooses experts per token (report eq 1 to 5).

    The first layer has no state to average and so no `state_scale`.
    """

    def __init__(self, model: Model, declare: Declare, *, first: bool):
        self.model, self.numerics = nnx.static(model), nnx.static(Numerics.of(model))
        D, R, kind = model.hidden_size, model.router.width, model.router.kind
        init = normal(model.init_std)

        def matrix(shape, axes, name):
            return declare(
                shape, axes, name=f"mlp.gate.{name}", init=init, group="matrix", layout="transposed"
            )

        def vector(name, start=zeros):
            return declare((R,), ("router",), name=f"mlp.gate.{name}", init=start, group="vector")

        self.has_mlp = kind != "linear"
        self.has_state_scale = kind == "mlp_eda" and not first
        if self.has_mlp:
            self.down = matrix((D, R), ("embed", "router"), "down_proj.weight")
            self.down_bias = vector("down_proj.bias")
            self.norm = vector("router_mlp.norm.weight", ones)
            self.fc1 = matrix((R, R), ("router", None), "router_mlp.fc1.weight")
            self.fc1_bias = vector("router_mlp.fc1.bias")
            self.fc2 = matrix((R, R), ("router", None), "router_mlp.fc2.weight")
            self.fc2_bias = vector("router_mlp.fc2.bias")
        if self.has_state_scale:
            self.state_scale = vector("router_states_scale", ones)
        width = R if self.has_mlp else D
        self.out = matrix(
            (width, classes(model)),
            ("router" if self.has_mlp else "embed", "experts"),
            "router_mlp.out_proj.weight",
        )
        self.biases = declare(
            (classes(model),),
            ("experts",),
            name="mlp.gate.balancing_biases",
            init=initial_biases(model),
            group="balance",
            kind=BalancingBias,
            dtype=jnp.promote_types(model.param_dtype, jnp.float32),
        )

    def __call__(self, x: jax.Array, state: jax.Array | None, live: jax.Array | None) -> Routing:
        """Args: x [T, D] normed; state [T, R] of the layer before, or None; live [T] bool."""

        def value(name: str) -> jax.Array | None:
            variable = getattr(self, name, None)
            return None if variable is None else variable[...]

        weights = Weights(
            **{name: value(name) for name in Weights._fields if name not in ("out",)},
            out=self.out[...],
        )
        routing = router(
            x,
            state,
            weights,
            self.biases[...],
            live,
            top_k=self.model.router.top_k,
            eps=self.model.norm_eps,
            norm_dtype=self.numerics.dtype("norm"),
            softmax_dtype=self.numerics.dtype("router_softmax"),
            implementation=self.model.ops.router,
        )
        # Only depth averaging reads the state; a scan need not carry it for the other kinds.
        return routing if self.model.router.kind == "mlp_eda" else routing._replace(state=None)
