"""Attention kinds, picked by name: `cca` (ZAYA) and `gqa` (the same heads without CCA's mixing)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pallas_kernels.attention import attention
from pallas_kernels.cca_mix import Weights, cca_mix
from pallas_kernels.cca_mix.reference import l2_norm, rotate
from pallas_kernels.decode_attention import decode_attention
from zaya_jax.config import Model
from zaya_jax.model import cache as caches
from zaya_jax.model.cache import LayerCache
from zaya_jax.model.numerics import Numerics
from zaya_jax.model.parameter import Declare, normal, ones, zeros
from zaya_jax.model.rope import rope_table

FEW_TOKENS = 256
"""Tokens of a call up to which projections of the same input stay apart; see `project`."""


class Tokens(NamedTuple):
    """Where the tokens of a call stand; shared by all layers.

    segment_ids: [B, S] int32 document of each token in its row, 0 for padding; None means one
      document and no padding.
    positions: [B, S] int32 index of each token in its document.
    live: [B, S] bool, False for padding; None means all.
    lengths: [B] int32 tokens in the cache before this call, None without a cache.
    """

    segment_ids: jax.Array | None
    positions: jax.Array
    live: jax.Array | None
    lengths: jax.Array | None = None


class _Attention(nnx.Module):
    """What the kinds share: projections in and out, span of the layer, attention itself."""

    def __init__(self, model: Model, declare: Declare, span: str):
        a = model.attention
        self.model, self.numerics = nnx.static(model), nnx.static(Numerics.of(model))
        self.window = a.window if span == "sliding" else None
        self.theta = a.window_rope_theta if span == "sliding" else a.rope_theta
        self.init = nnx.static(normal(model.init_std))
        D, C = model.hidden_size, a.head_dim
        self.q = self._projection(declare, (D, a.heads * C), ("embed", "heads"), "qkv_proj.q_proj")
        self.k = self._projection(
            declare, (D, a.kv_heads * C), ("embed", "kv_heads"), "qkv_proj.k_proj"
        )
        self.output = self._projection(declare, (a.heads * C, D), ("heads", "embed"), "o_proj")

    def _projection(self, declare: Declare, shape, axes, name: str) -> nnx.Variable:
        name = f"self_attn.{name}.weight"
        return declare(shape, axes, name=name, init=self.init, group="matrix", layout="transposed")

    def _rope(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        a = self.model.attention
        channels = int(a.head_dim * a.rope_fraction)
        return rope_table(positions, theta=self.theta, channels=channels, numerics=self.numerics)

    def _attend(self, q, k, v, tokens: Tokens, cache: LayerCache | None):
        """Attention over this call's tokens, or over the cache for a single new token."""
        ops, S = self.model.ops, q.shape[1]
        if cache is not None:
            assert tokens.lengths is not None
            cache = caches.append(cache, k, v, tokens.lengths)
        if cache is not None and S == 1:
            out = decode_attention(
                q[:, 0],
                cache.k,
                cache.v,
                tokens.lengths + 1,  # type: ignore[operator]  # set wherever a cache is
                window=self.window,
                implementation=ops.decode_attention,
            )[:, None]
        else:
            out = attention(
                q,
                k,
                v,
                tokens.segment_ids,
                window=self.window,
                implementation=ops.attention,
            )
        out = out.reshape(*out.shape[:2], -1)
        return out @ self.output[...].astype(out.dtype), cache


def project(x: jax.Array, *weights: nnx.Variable) -> list[jax.Array]:
    """x [B, S, D] through each [D, n] of `weights`.

    With many tokens this is one wide matmul, whose backward pass needs no sum over the weights;
    with few, the copy that joins the weights would cost more than the matmuls.
    """
    matrices = [w[...].astype(x.dtype) for w in weights]
    if x.shape[0] * x.shape[1] <= FEW_TOKENS:
        return [x @ w for w in matrices]
    ends = np.cumsum([w.shape[1] for w in matrices])[:-1]
    return jnp.split(x @ jnp.concatenate(matrices, axis=1), ends, axis=-1)


class CCA(_Attention):
    """Compressed convolutional attention (arXiv 2510.04476): attention inside a compressed latent.

    q and k are mixed over time by two causal convolutions; half of each token's value comes from
    the token before.
    """

    def __init__(self, model: Model, declare: Declare, span: str):
        super().__init__(model, declare, span)
        a, D = model.attention, model.hidden_size
        (K0, K1), heads, C = a.conv_kernels, a.heads + a.kv_heads, a.head_dim
        half = a.kv_heads * C // 2
        value = ((D, half), ("embed", "kv_heads"))
        self.v_current = self._projection(declare, *value, "qkv_proj.v_proj_current")
        self.v_delayed = self._projection(declare, *value, "qkv_proj.v_proj_delayed")
        conv = "self_attn.qkv_proj.conv_qk_"
        self.conv_depthwise = declare(
            (K0, heads * C),
            (None, "heads"),
            name=conv + "depthwise.weight",
            init=self.init,
            group="convolution",
            layout="depthwise",
        )
        self.conv_depthwise_bias = declare(
            (heads * C,),
            ("heads",),
            name=conv + "depthwise.bias",
            init=zeros,
            group="vector",
        )
        self.conv_grouped = declare(
            (K1, heads, C, C),
            (None, "heads", None, None),
            name=conv + "grouped.weight",
            init=self.init,
            group="convolution",
            layout="grouped",
        )
        self.conv_grouped_bias = declare(
            (heads * C,),
            ("heads",),
            name=conv + "grouped.bias",
            init=zeros,
            group="vector",
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
        q, k, v_current, v_delayed = project(x, self.q, self.k, self.v_current, self.v_delayed)
        weights = Weights(
            self.conv_depthwise[...],
            self.conv_depthwise_bias[...],
            self.conv_grouped[...],
            self.conv_grouped_bias[...],
            self.temperature[...],
        )
        cos, sin = self._rope(tokens.positions)
        mixed_q, mixed_k, v = cca_mix(
            q,
            k,
            v_current,
            v_delayed,
            weights,
            cos,
            sin,
            tokens.positions,
            None if cache is None else cache.state,
            norm_dtype=self.numerics.dtype("qk_mean_norm"),
            implementation=self.model.ops.cca_mix,
        )
        if cache is not None:
            assert cache.state is not None
            counts = jnp.full(x.shape[:1], x.shape[1], jnp.int32)
            if tokens.live is not None:
                counts = jnp.sum(tokens.live, axis=1, dtype=jnp.int32)
            qk = jnp.concatenate([q, k], axis=-1)
            cache = cache._replace(state=caches.last_state(cache.state, qk, v_delayed, counts))
        return self._attend(mixed_q, mixed_k, v, tokens, cache)


class GQA(_Attention):
    """Grouped-query attention (arXiv 2305.13245) with parameter-free QK RMS norm and the same RoPE:
    CCA without convolutions, q-k mean, value shift and temperature."""

    def __init__(self, model: Model, declare: Declare, span: str):
        super().__init__(model, declare, span)
        width = model.attention.kv_heads * model.attention.head_dim
        self.v = self._projection(
            declare, (model.hidden_size, width), ("embed", "kv_heads"), "qkv_proj.v_proj"
        )

    def __call__(
        self, x: jax.Array, tokens: Tokens, cache: LayerCache | None = None
    ) -> tuple[jax.Array, LayerCache | None]:
        """Args: x [B, S, D] normed; returns [B, S, D] and the updated cache."""
        q, k, v = project(x, self.q, self.k, self.v)
        cos, sin = self._rope(tokens.positions)
        C, dtype = self.model.attention.head_dim, self.numerics.dtype("qk_mean_norm")

        def prepare(latents: jax.Array) -> jax.Array:
            heads = latents.reshape(*latents.shape[:2], -1, C).astype(dtype)
            return rotate(l2_norm(heads, dtype), cos, sin).astype(x.dtype)

        v = v.reshape(*v.shape[:2], -1, C)
        return self._attend(prepare(q), prepare(k), v, tokens, cache)


KINDS = {"cca": CCA, "gqa": GQA}
