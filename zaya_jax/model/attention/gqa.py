"""Attention with a key and value head for each group of query heads, or for each query head."""

from __future__ import annotations

import jax

from pallas_kernels.cca_mix.reference import l2_norm, rotate
from zaya_jax.config import Model
from zaya_jax.model.attention.base import Attention, Tokens, project
from zaya_jax.model.attention.cache import LayerCache, keys_and_values
from zaya_jax.model.parameter import Declare


class GQA(Attention):
    """Grouped-query attention (arXiv 2305.13245) with parameter-free QK RMS norm and the same RoPE:
    CCA without convolutions, q-k mean, value shift and temperature."""

    @staticmethod
    def kv_heads(model: Model) -> int:
        """Heads of keys and values."""
        return model.attention.kv_heads

    def __init__(self, model: Model, declare: Declare, span: str):
        super().__init__(model, declare, span)
        D, C, K = model.hidden_size, model.attention.head_dim, self.kv_heads(model)
        self.q = self.matrix(
            declare, (D, model.attention.heads * C), ("embed", "heads"), "qkv_proj.q_proj"
        )
        self.k = self.matrix(declare, (D, K * C), ("embed", "kv_heads"), "qkv_proj.k_proj")
        self.v = self.matrix(declare, (D, K * C), ("embed", "kv_heads"), "qkv_proj.v_proj")

    def __call__(
        self, x: jax.Array, tokens: Tokens, cache: LayerCache | None = None
    ) -> tuple[jax.Array, LayerCache | None]:
        """Args: x [B, S, D] normed; returns [B, S, D] and the updated cache."""
        q, k, v = project(x, self.q, self.k, self.v)
        cos, sin = self.rope(tokens.positions)
        C, dtype = self.model.attention.head_dim, self.numerics.dtype("qk_mean_norm")

        def prepare(latents: jax.Array) -> jax.Array:
            heads = latents.reshape(*latents.shape[:2], -1, C).astype(dtype)
            return rotate(l2_norm(heads, dtype), cos, sin).astype(x.dtype)

        v = v.reshape(*v.shape[:2], -1, C)
        return self.attend(prepare(q), prepare(k), v, tokens, cache)

    @classmethod
    def empty_cache(cls, model: Model, batch: int, capacity: int) -> LayerCache:
        """Keys and values."""
        return keys_and_values(model, batch, capacity, cls.kv_heads(model))


class MHA(GQA):
    """Multi-head attention (arXiv 1706.03762): GQA with one key and value head a query head."""

    @staticmethod
    def kv_heads(model: Model) -> int:
        """As many as query heads; `attention.kv_heads` is not read."""
        return model.attention.heads
