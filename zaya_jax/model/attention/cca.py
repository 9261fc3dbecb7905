"""Compressed convolutional attention (arXiv 2510.04476): attention inside a compressed latent."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.cca_mix import Cache, Place, State, Weights, cca_mix, cca_mix_decode
from pallas_kernels.projections import projections
from zaya_jax.config import Model
from zaya_jax.model.attention import paged
from zaya_jax.model.attention.base import Attention, Tokens, project
from zaya_jax.model.attention.cache import LayerCache, keys_and_values, last_state
from zaya_jax.model.parameter import Declare, normal, ones, stored, zeros


class CCA(Attention):
    """q and k are mixed over time by two causal convolutions; half of each token's value comes from
    the token before.

    Each of these can be left out: `attention.conv_kernels` names the convolutions that are there,
    depthwise first, and `attention.qk_mean` and `attention.value_shift` are switches. Without its
    shift, a value is made by the same two matrices, `v_delayed` then being of the token itself: the
    arms of that comparison have the same parameters, and start from the same values.
    """

    def __init__(self, model: Model, declare: Declare, span: str):
        super().__init__(model, declare, span)
        a, D, C = model.attention, model.hidden_size, model.attention.head_dim
        heads, half = a.heads + a.kv_heads, a.kv_heads * C // 2

        def projection(width: int, axis: str, name: str):
            return self.matrix(declare, (D, width), ("embed", axis), f"qkv_proj.{name}")

        self.q = projection(a.heads * C, "heads", "q_proj")
        self.k = projection(a.kv_heads * C, "kv_heads", "k_proj")
        self.v_current = projection(half, "kv_heads", "v_proj_current")
        self.v_delayed = projection(half, "kv_heads", "v_proj_delayed")

        def convolution(kind: str, shape, axes):
            name, init = f"self_attn.qkv_proj.conv_qk_{kind}", normal(model.init_std)
            weight = declare(
                shape, axes, name=f"{name}.weight", init=init, group="convolution", layout=kind
            )
            bias = declare(
                (heads * C,), ("heads",), name=f"{name}.bias", init=zeros, group="vector"
            )
            return weight, bias

        if len(a.conv_kernels) > 0:
            self.conv_depthwise, self.conv_depthwise_bias = convolution(
                "depthwise", (a.conv_kernels[0], heads * C), (None, "heads")
            )
        if len(a.conv_kernels) > 1:
            self.conv_grouped, self.conv_grouped_bias = convolution(
                "grouped", (a.conv_kernels[1], heads, C, C), (None, "heads", None, None)
            )
        # Ones, where transformers starts from zeros: zero keys would get no gradient.
        self.temperature = declare(
            (a.kv_heads,),
            ("kv_heads",),
            name="self_attn.qk_norm.temp",
            init=ones,
            group="vector",
        )

    def __call__(
        self, x: jax.Array, tokens: Tokens, cache: LayerCache | None = None
    ) -> tuple[jax.Array, LayerCache | None]:
        """Args: x [B, S, D] normed; returns [B, S, D] and the updated cache."""
        a = self.model.attention
        decodes = cache is not None and x.shape[1] == 1
        q, k, v_current, v_delayed = self.latents(x, decodes)

        def part(name: str) -> jax.Array | None:
            variable = getattr(self, name, None)
            return None if variable is None else variable[...]

        weights = Weights(
            part("conv_depthwise"),
            part("conv_depthwise_bias"),
            part("conv_grouped"),
            part("conv_grouped_bias"),
            self.temperature[...],
        )
        options = dict(
            norm_dtype=self.numerics.dtype("qk_mean_norm"),
            qk_mean=a.qk_mean,
            value_shift=a.value_shift,
            implementation=self.model.ops.cca_mix,
        )
        cos, sin = self.rope(tokens.positions)
        if cache is not None and decodes and cache.scales is None:
            before, place = _before(cache, tokens)
            mixed_q, after = cca_mix_decode(
                q,
                k,
                v_current,
                v_delayed,
                weights,
                cos,
                sin,
                tokens.positions,
                before,
                place,
                **options,
            )
            cache = cache._replace(k=after.keys, v=after.values, state=after.state)
            return self.attend_newest(mixed_q, tokens, cache), cache

        state = None if cache is None else cache.state
        if cache is not None and cache.table is not None:
            assert tokens.lengths is not None
            state = paged.state_before(cache, tokens.lengths)

        def mix(q, k, v_current, v_delayed, cos, sin, positions, state):
            return cca_mix(
                q, k, v_current, v_delayed, weights, cos, sin, positions, state, **options
            )

        mixed_q, mixed_k, v = tokens.shard.mix(
            mix, weights.past, (q, k, v_current, v_delayed), (cos, sin, tokens.positions), state
        )
        if cache is not None and cache.table is not None:
            assert state is not None and tokens.lengths is not None and tokens.live is not None
            qk = jnp.concatenate([q, k], axis=-1)
            cache = paged.remember(cache, state, qk, v_delayed, tokens.lengths, tokens.live)
        elif cache is not None:
            assert cache.state is not None
            counts = jnp.full(x.shape[:1], x.shape[1], jnp.int32)
            if tokens.live is not None:
                counts = jnp.sum(tokens.live, axis=1, dtype=jnp.int32)
            qk = jnp.concatenate([q, k], axis=-1)
            cache = cache._replace(state=last_state(cache.state, qk, v_delayed, counts))
        return self.attend(mixed_q, mixed_k, v, tokens, cache)

    def latents(self, x: jax.Array, decodes: bool) -> tuple[jax.Array, ...]:
        """q, k, v_current, v_delayed [B, S, channels] of x; one launch on a GPU that `decodes`."""
        matrices = (self.q, self.k, self.v_current, self.v_delayed)
        if not decodes:
            return tuple(project(x, *matrices))
        weights = [stored(w, x.dtype) for w in matrices]
        found = projections(x[:, 0], weights, implementation=self.model.ops.projections)
        return tuple(y[:, None] for y in found)

    def attend_newest(self, q: jax.Array, tokens: Tokens, cache: LayerCache) -> jax.Array:
        """q [B, 1, H, C] of tokens that the cache holds -> [B, 1, D]."""
        if cache.table is not None:
            out = self.attend_pages(q, None, None, tokens, cache)
        else:
            out = self.attend_cache(q[:, 0], cache.k, cache.v, tokens)
        out = out.reshape(len(q), -1)
        weights = [stored(self.output, out.dtype)]
        [y] = projections(out, weights, implementation=self.model.ops.projections)
        return y[:, None]

    @staticmethod
    def empty_cache(model: Model, batch: int, capacity: int) -> LayerCache:
        """Keys and values, the last latents that a convolution reads, the last delayed value."""
        a, dtype = model.attention, jnp.dtype(model.activation_dtype)
        past = sum(a.conv_kernels) - len(a.conv_kernels)
        latents = jnp.zeros((batch, past, (a.heads + a.kv_heads) * a.head_dim), dtype)
        value = jnp.zeros((batch, a.kv_heads * a.head_dim // 2), dtype) if a.value_shift else None
        return keys_and_values(model, batch, capacity, a.kv_heads, State(latents, value))


def _before(cache: LayerCache, tokens: Tokens) -> tuple[Cache, Place]:
    """What one new token of each row continues from, and where it goes."""
    assert cache.state is not None and tokens.lengths is not None
    live = tokens.live
    live = jnp.ones_like(tokens.positions, bool) if live is None else live
    place = Place(tokens.lengths, live[:, 0])
    if cache.table is not None:
        place = paged.place(cache, tokens.lengths, live)
    return Cache(cache.k, cache.v, cache.state), place
