"""What the attention kinds share: projections, span of the layer, attention itself."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pallas_kernels.attention import attention
from pallas_kernels.decode_attention import decode_attention
from pallas_kernels.projections import projections
from pallas_kernels.quantized import Quantized
from zaya_jax.config import Model
from zaya_jax.model.attention import paged
from zaya_jax.model.attention.cache import LayerCache, append
from zaya_jax.model.numerics import Numerics
from zaya_jax.model.parameter import Declare, normal, stored
from zaya_jax.model.rope import rope_table
from zaya_jax.model.shard import WHOLE, Shard

FEW_TOKENS = 256
"""Tokens of a call up to which projections of the same input stay apart; see `project`."""


class Tokens(NamedTuple):
    """Where the tokens of a call stand; shared by all layers.

    segment_ids: [B, T] int32 document of each position of a row, 0 for padding; None means one
      document and no padding. T is S, or more where the tokens are a part of their rows.
    positions: [B, S] int32 index of each token in its document.
    live: [B, S] bool, False for padding; None means all.
    lengths: [B] int32 tokens in the cache before this call, None without a cache.
    shard: which part of the batch these tokens are.
    """

    segment_ids: jax.Array | None
    positions: jax.Array
    live: jax.Array | None
    lengths: jax.Array | None = None
    shard: Shard = WHOLE


class Attention(nnx.Module):
    """One layer's attention. A kind declares its parameters in `__init__` and computes in
    `__call__`; parameters of one name are equal in all kinds where their shapes are.

    Args:
      model: the whole section; kinds read `model.attention`.
      declare: creates parameters.
      span: `full` or `sliding`.
    """

    def __init__(self, model: Model, declare: Declare, span: str):
        a = model.attention
        self.model, self.numerics = nnx.static(model), nnx.static(Numerics.of(model))
        self.window = a.window if span == "sliding" else None
        self.theta = a.window_rope_theta if span == "sliding" else a.rope_theta
        self.output = self.matrix(
            declare, (a.heads * a.head_dim, model.hidden_size), ("heads", "embed"), "o_proj"
        )

    def __call__(
        self, x: jax.Array, tokens: Tokens, cache: LayerCache | None = None
    ) -> tuple[jax.Array, LayerCache | None]:
        """Args: x [B, S, D] normed; returns [B, S, D] and the updated cache."""
        raise NotImplementedError

    @staticmethod
    def empty_cache(model: Model, batch: int, capacity: int) -> LayerCache:
        """What a layer keeps of `batch` rows of at most `capacity` tokens, empty."""
        raise NotImplementedError

    @staticmethod
    def score_flops(model: Model, keys: float) -> float:
        """FLOPs of scores and values, forward, for a query that sees so many keys: a multiply and
        an add each. A kind that is not softmax attention over `heads` x `head_dim` has its own."""
        return 4 * model.attention.heads * model.attention.head_dim * keys

    def matrix(self, declare: Declare, shape, axes, name: str) -> nnx.Variable:
        """A projection [in, out]; `name` is that of its module in a Hugging Face file."""
        return declare(
            shape,
            axes,
            name=f"self_attn.{name}.weight",
            init=normal(self.model.init_std),
            group="matrix",
            layout="transposed",
        )

    def rope(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Cosine and sine [B, S, rotary_channels / 2] of this layer's angles."""
        channels = rotary_channels(self.model)
        return rope_table(positions, theta=self.theta, channels=channels, numerics=self.numerics)

    def attend(self, q, k, v, tokens: Tokens, cache: LayerCache | None):
        """Attention over this call's tokens, or over the cache for a single new token; over both in
        a cache of pages.

        Args:
          q: [B, S, H, C].
          k, v: [B, S, K, C], also what the cache keeps of each token.

        Returns:
          [B, S, D] and the cache with the new tokens.
        """
        if cache is not None and cache.table is not None:
            assert tokens.lengths is not None and tokens.live is not None
            cache = paged.append(cache, k, v, tokens.lengths, tokens.live)
            return self.project_out(self.attend_pages(q, k, v, tokens, cache)), cache
        if cache is not None:
            assert tokens.lengths is not None
            cache = append(cache, k, v, tokens.lengths)
        if cache is not None and q.shape[1] == 1:
            out = self.attend_cache(q[:, 0], cache.k, cache.v, tokens)[:, None]
        else:
            out = self.attend_row(q, k, v, tokens)
        return self.project_out(out), cache

    def attend_row(self, q, k, v, tokens: Tokens) -> jax.Array:
        """q [B, S, H, C], k and v [B, S, K, C] -> [B, S, H, C]."""
        op = functools.partial(
            attention, window=self.window, implementation=self.model.ops.attention
        )
        return tokens.shard.attend(op, q, k, v, tokens.segment_ids)

    def attend_cache(self, q, k, v, tokens: Tokens, scale: float | None = None) -> jax.Array:
        """q [B, H, C] of the newest token, caches k and v [B, K, T, C] -> [B, H, C]."""
        assert tokens.lengths is not None
        return decode_attention(
            q,
            k,
            v,
            tokens.lengths + 1,
            window=self.window,
            scale=scale,
            implementation=self.model.ops.decode_attention,
        )

    def attend_pages(self, q, k, v, tokens: Tokens, cache: LayerCache) -> jax.Array:
        """q [B, S, H, C] of new tokens, which the cache holds -> [B, S, H, C].

        A chunk that the table has no room before, being as long as the table, begins at position 0.
        One that has continues a single row, B = 1.
        """
        assert tokens.lengths is not None and tokens.live is not None and cache.table is not None
        if q.shape[1] == 1:
            out = decode_attention(
                q[:, 0],
                cache.k,
                cache.v,
                jnp.where(tokens.live[:, 0], tokens.lengths + 1, 0),
                window=self.window,
                pages=cache.table,
                scales=cache.scales,
                implementation=self.model.ops.decode_attention,
            )
            return out[:, None]
        if q.shape[1] == cache.table.shape[1] * cache.k.shape[2]:
            return self.attend_row(q, k, v, tokens)
        assert len(q) == 1, "one offset for all rows of a call"
        return attention(
            q,
            *paged.in_a_row(cache, q.dtype),
            query_offset=tokens.lengths[0],
            window=self.window,
            implementation=self.model.ops.attention,
        )

    def project_out(self, out: jax.Array) -> jax.Array:
        """[B, S, H, C] -> [B, S, D]."""
        [y] = project(out.reshape(*out.shape[:2], -1), self.output)
        return y


def rotary_channels(model: Model) -> int:
    """Channels of a head that are rotated."""
    return int(model.attention.head_dim * model.attention.rope_fraction)


def project(x: jax.Array, *weights: nnx.Variable) -> list[jax.Array]:
    """x [B, S, D] through each [D, n] of `weights`.

    With many tokens this is one wide matmul, whose backward pass needs no sum over the weights;
    with few, the copy that joins the weights would cost more than the matmuls.
    """
    matrices = [stored(w, x.dtype) for w in weights]
    if any(isinstance(w, Quantized) for w in matrices):
        found = projections(x.reshape(-1, x.shape[-1]), matrices)
        return [y.reshape(*x.shape[:-1], -1) for y in found]
    if len(matrices) == 1 or x.shape[0] * x.shape[1] <= FEW_TOKENS:
        return [x @ w for w in matrices]
    ends = np.cumsum([w.shape[1] for w in matrices])[:-1]
    return jnp.split(x @ jnp.concatenate(matrices, axis=1), ends, axis=-1)
