"""One layer: attention and experts, each merged into the residual stream by learned scaling."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.router import Routing
from zaya_jax.config import Model
from zaya_jax.model.attention import Tokens, kind_of
from zaya_jax.model.attention.cache import LayerCache
from zaya_jax.model.experts import Experts
from zaya_jax.model.norm import rms_norm
from zaya_jax.model.numerics import Numerics
from zaya_jax.model.parameter import Declare, ones
from zaya_jax.model.residual import ResidualScaling
from zaya_jax.model.router import Router, replay


class RouterStats(NamedTuple):
    """What a layer reports of its routing; scalars are means over live tokens.

    counts: [classes] int32 tokens (times k) that chose each class.
    entropy: entropy of the token's own routing distribution, in nats.
    index: [B, S, k] int32 the choices themselves.
    probability: [classes] of the unbiased distribution; differentiable.
    z: square of the log-normaliser of the router's logits; differentiable.
    residual_norm: Euclidean norm of the residual stream after the layer.
    """

    counts: jax.Array
    entropy: jax.Array
    index: jax.Array
    probability: jax.Array
    z: jax.Array
    residual_norm: jax.Array


class Block(nnx.Module):
    """norm -> attention -> merge -> norm -> router and experts -> merge."""

    def __init__(self, model: Model, declare: Declare, *, span: str, first: bool):
        self.eps, self.numerics = model.norm_eps, nnx.static(Numerics.of(model))

        def norm(name: str) -> nnx.Variable:
            return declare(
                (model.hidden_size,), ("embed",), name=f"{name}.weight", init=ones, group="vector"
            )

        self.input_norm = norm("input_layernorm")
        self.attention = kind_of(model)(model, declare, span)
        self.attention_residual = ResidualScaling(model, declare, "post_attention_residual_scale")
        self.mlp_norm = norm("post_attention_layernorm")
        self.router = Router(model, declare, first=first)
        self.experts = Experts(model, declare)
        self.mlp_residual = ResidualScaling(model, declare, "post_mlp_residual_scale")

    def __call__(
        self,
        stream: jax.Array,
        router_state: jax.Array | None,
        tokens: Tokens,
        cache: LayerCache | None = None,
        routes: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None, RouterStats, LayerCache | None]:
        """Args: stream [B, S, D]; router_state [T, R] of the layer before, or None in the first;
        routes [B, S, k] classes to take instead of those that the router would choose.

        Returns: stream, router state for the next layer, routing statistics, updated cache.
        """
        x = self.normed(stream)
        *found, _ = self.forward(stream, x, router_state, tokens, cache, routes)
        return tuple(found)

    def normed(self, stream: jax.Array) -> jax.Array:
        """What the block reads of the stream [B, S, D]: its norm."""
        return rms_norm(stream, self.input_norm[...], self.eps, self.numerics)

    def forward(
        self,
        stream: jax.Array,
        x: jax.Array,
        router_state: jax.Array | None,
        tokens: Tokens,
        cache: LayerCache | None = None,
        routes: jax.Array | None = None,
        next_norm: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None, RouterStats, LayerCache | None, jax.Array | None]:
        """The same from the stream and its norm `x`. The last of what it returns is the next
        block's `x`, if `next_norm` [D] is the weight of that: the merge makes it on its way."""
        shape = stream.shape
        mixed, cache = self.attention(x, tokens, cache)
        stream, merged = self.attention_residual(mixed, stream, self.mlp_norm[...])

        assert merged is not None
        x = merged.reshape(-1, shape[-1])
        live = None if tokens.live is None else tokens.live.reshape(-1)
        routing = self.router(x, router_state, live)
        if routes is not None:
            routing = replay(routing, routes.reshape(len(x), -1).astype(jnp.int32), live)
        y = self.experts(x, routing, tokens.shard).reshape(shape)
        stream, next_x = self.mlp_residual(y, stream, next_norm)

        stats = self._stats(routing, jax.lax.stop_gradient(stream), live)
        return stream, routing.state, stats, cache, next_x

    def _stats(self, routing: Routing, stream: jax.Array, live: jax.Array | None) -> RouterStats:
        p = routing.probabilities.astype(jnp.promote_types(stream.dtype, jnp.float32))
        share = jnp.ones_like(p[:, 0]) if live is None else live.astype(p.dtype)
        share = share / jnp.maximum(jnp.sum(share), 1)

        def mean(values: jax.Array) -> jax.Array:
            return jnp.tensordot(share, values, axes=1)

        fixed = jax.lax.stop_gradient(p)
        token_entropy = -jnp.sum(jnp.where(fixed > 0, fixed * jnp.log(fixed), 0), axis=-1)
        norm = jnp.sqrt(jnp.sum(jnp.square(stream.astype(p.dtype)), axis=-1))
        return RouterStats(
            counts=routing.counts,
            entropy=mean(token_entropy),
            index=routing.index.reshape(*stream.shape[:2], -1),
            probability=mean(p),
            z=mean(jnp.square(routing.log_normalizer.astype(p.dtype))),
            residual_norm=mean(norm.reshape(-1)),
        )
