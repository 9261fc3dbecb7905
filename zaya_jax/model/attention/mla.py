"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    c = RMSNorm(x W_dkv)                [kv_rank]: the latent, from which keys and values are made
    k_h = [c W_uk_h, RoPE(x W_kr)]      own channels of each head, and rotary ones that all share
    v_h = c W_uv_h
    q_h = [q_nope_h, RoPE(q_rope_h)]    from x W_q, or from RMSNorm(x W_dq) W_uq
    out = sum_h softmax(q_h k_h^T / sqrt(C)) v_h W_o_h

A cache keeps c and the rotary key, kv_rank + R numbers a token. A single new token reads them as
they are, W_uk taken to the side of the query and W_uv to that of the output ("absorbed"):

    q_nope_h (c W_uk_h)^T = (q_nope_h W_uk_h^T) c^T        p (c W_uv_h) = (p c) W_uv_h
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels.cca_mix.reference import rotate
from zaya_jax.config import Model
from zaya_jax.model.attention.base import Attention, Tokens, project, rotary_channels
from zaya_jax.model.attention.cache import LayerCache, append
from zaya_jax.model.norm import rms_norm
from zaya_jax.model.parameter import Declare, dense, ones


class MLA(Attention):
    """Keys and values of all heads from one latent of `attention.kv_rank`.

    A head has C = `head_dim` channels, of which the last R = C * `rope_fraction` are rotated; its
    value has C too. There is no QK norm. `attention.kv_heads` is not read.
    """

    def __init__(self, model: Model, declare: Declare, span: str):
        super().__init__(model, declare, span)
        a, D, R = model.attention, model.hidden_size, rotary_channels(model)
        H, C = a.heads, a.head_dim

        def norm(width: int, name: str) -> nnx.Variable:
            name = f"self_attn.{name}.weight"
            return declare((width,), (None,), name=name, init=ones, group="vector")

        if a.q_rank:
            self.q_down = self.matrix(declare, (D, a.q_rank), ("embed", None), "q_a_proj")
            self.q_norm = norm(a.q_rank, "q_a_layernorm")
            self.q_up = self.matrix(declare, (a.q_rank, H * C), (None, "heads"), "q_b_proj")
        else:
            self.q = self.matrix(declare, (D, H * C), ("embed", "heads"), "qkv_proj.q_proj")
        self.kv_down = self.matrix(declare, (D, a.kv_rank), ("embed", None), "kv_a_proj")
        self.kv_norm = norm(a.kv_rank, "kv_a_layernorm")
        self.k_rope = self.matrix(declare, (D, R), ("embed", None), "k_rope_proj")
        up = (None, "heads")
        self.k_up = self.matrix(declare, (a.kv_rank, H * (C - R)), up, "k_b_proj")
        self.v_up = self.matrix(declare, (a.kv_rank, H * C), up, "v_b_proj")

    def __call__(
        self, x: jax.Array, tokens: Tokens, cache: LayerCache | None = None
    ) -> tuple[jax.Array, LayerCache | None]:
        """Args: x [B, S, D] normed; returns [B, S, D] and the updated cache."""
        a, (B, S, _), dtype = self.model.attention, x.shape, x.dtype
        first = self.q_down if a.q_rank else self.q
        q, latent, k_rope = project(x, first, self.kv_down, self.k_rope)
        if a.q_rank:
            q = self._norm(q, self.q_norm) @ dense(self.q_up, dtype)
        plain = a.head_dim - k_rope.shape[-1]
        q_nope, q_rope = jnp.split(q.reshape(B, S, a.heads, -1), [plain], axis=-1)
        cos, sin = self.rope(tokens.positions)

        def turn(heads: jax.Array) -> jax.Array:
            return rotate(heads.astype(self.numerics.dtype("rope")), cos, sin).astype(dtype)

        q_rope, k_rope = turn(q_rope), turn(k_rope[:, :, None])  # one key head for all
        latent = self._norm(latent, self.kv_norm)
        if cache is not None:
            assert tokens.lengths is not None
            kept = jnp.concatenate([latent[:, :, None], k_rope], axis=-1)
            cache = append(cache, kept, kept[..., :0], tokens.lengths)
        # [kv_rank, H, C - R] and [kv_rank, H, C].
        k_up, v_up = (
            dense(w, dtype).reshape(a.kv_rank, a.heads, -1) for w in (self.k_up, self.v_up)
        )
        if cache is not None and S == 1:
            q_latent = jnp.einsum("bshc,rhc->bshr", q_nope, k_up)
            q = jnp.concatenate([q_latent, q_rope], axis=-1)
            out = self.attend_cache(q[:, 0], cache.k, cache.k, tokens, scale=a.head_dim**-0.5)
            out = jnp.einsum("bhr,rhc->bhc", out[..., : a.kv_rank], v_up)[:, None]
        else:
            k_nope = jnp.einsum("bsr,rhc->bshc", latent, k_up)
            k_rope = jnp.broadcast_to(k_rope, q_rope.shape)
            q = jnp.concatenate([q_nope, q_rope], axis=-1)
            k = jnp.concatenate([k_nope, k_rope], axis=-1)
            v = jnp.einsum("bsr,rhc->bshc", latent, v_up)
            out = self.attend_row(q, k, v, tokens)
        return self.project_out(out), cache

    def _norm(self, latent: jax.Array, weight: nnx.Variable) -> jax.Array:
        return rms_norm(latent, weight[...], self.model.norm_eps, self.numerics)

    @staticmethod
    def empty_cache(model: Model, batch: int, capacity: int) -> LayerCache:
        """The latent and the rotary key as one key, and values of no width."""
        width = model.attention.kv_rank + rotary_channels(model)
        keys = jnp.zeros((batch, 1, capacity, width), jnp.dtype(model.activation_dtype))
        return LayerCache(keys, keys[..., :0])
