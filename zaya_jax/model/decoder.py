"""The network: embedding, layers, final norm, tied head.

Layers come in two forms that compute the same thing. `unroll` holds every layer on its own. `scan`
holds the first period of the attention pattern on its own (the first layer differs: it has no
router state to average) and the other layers in stacks, one for each place in the period, over
which `jax.lax.scan` runs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from pallas_kernels import dispatch
from pallas_kernels.projections import tied
from pallas_kernels.quantized import Quantized
from zaya_jax.config import Model
from zaya_jax.model.attention import Tokens
from zaya_jax.model.attention.cache import LayerCache
from zaya_jax.model.block import Block, RouterStats
from zaya_jax.model.cache import Cache
from zaya_jax.model.norm import rms_norm
from zaya_jax.model.numerics import Numerics
from zaya_jax.model.parameter import Declare, normal, ones, zeros
from zaya_jax.model.shard import WHOLE, Shard


class Output(NamedTuple):
    """hidden: [B, S, D] after the final norm. stats: `RouterStats` with a leading layer axis L.
    cache: updated, or None."""

    hidden: jax.Array
    stats: RouterStats
    cache: Cache | None


def period(model: Model) -> int:
    """Layers after which the attention pattern repeats."""
    return len(model.attention.pattern)


def span_of(model: Model, layer: int) -> str:
    """`full` or `sliding`."""
    return model.attention.pattern[layer % period(model)]


FEW_ON_CPU = 64  # tokens up to which `tied_logits` transposes

REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


def tied_logits(hidden: jax.Array, head: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`hidden [..., D] @ head.T` for a head [V, D]: [..., V] in `dtype`."""
    tokens = hidden.size // hidden.shape[-1]
    if dispatch.platform() != "cpu" or tokens > FEW_ON_CPU:
        return jnp.matmul(hidden, head.T, preferred_element_type=dtype)
    # XLA:CPU takes a third longer for few tokens where both operands are contracted over their last
    # axis. So they are transposed before, and the logits afterwards (the barriers keep XLA from
    # undoing that).
    columns = jax.lax.optimization_barrier(hidden.reshape(tokens, -1).T)
    logits = jnp.matmul(head, columns, preferred_element_type=dtype)
    logits = jax.lax.optimization_barrier(logits).T
    return logits.reshape(*hidden.shape[:-1], -1)


class Decoder(nnx.Module):
    """ZAYA: a decoder-only mixture of experts.

    Args:
      model: the shape; see `zaya_jax.config.Model`.
      key: PRNG key of the initial weights.
    """

    def __init__(self, model: Model, key: jax.Array):
        self.model, self.numerics = nnx.static(model), nnx.static(Numerics.of(model))
        declare = Declare(key, jnp.dtype(model.param_dtype))
        D, P, L = model.hidden_size, period(model), model.num_layers

        def vector(name: str, init) -> nnx.Variable:
            return declare((D,), ("embed",), name=name, init=init, group="vector")

        self.embedding = declare(
            (model.vocab_size, D),
            ("vocab", "embed"),
            name="model.embed_tokens.weight",
            init=normal(model.init_std),
            group="embedding",
        )
        if model.residual_scaling:
            self.input_scale = vector("model.input_hidden_states_scale", ones)
            self.input_bias = vector("model.input_hidden_states_bias", zeros)
        self.final_norm = vector("model.norm.weight", ones)

        alone = range(L) if model.layers == "unroll" else range(P)
        self.layers = nnx.List(
            Block(model, declare.at(i), span=span_of(model, i), first=i == 0) for i in alone
        )
        stacks = [tuple(range(P + p, L, P)) for p in range(P)] if len(alone) < L else []
        self.stacks = nnx.List(
            Block(model, declare.at(s), span=span_of(model, s[0]), first=False) for s in stacks
        )

    def __call__(
        self,
        tokens: jax.Array,
        segment_ids: jax.Array | None = None,
        positions: jax.Array | None = None,
        cache: Cache | None = None,
        shard: Shard = WHOLE,
        routes: jax.Array | None = None,
    ) -> Output:
        """Runs the network.

        Args:
          tokens: [B, S] int32.
          segment_ids: [B, S] int32, the document of each token in its row, 0 for padding. None: one
            document a row, no padding.
          positions: [B, S] int32 index in the document; derived from `segment_ids` by default.
          cache: an empty cache to prefill with a prompt (padding on the right), or a filled one to
            continue by a single token (S = 1); every row must have room.
          shard: which part of a batch the tokens are; a part of rows brings its positions along.
          routes: [B, S, L, k] integers, the classes that each layer's router is to choose (router
            replay); None leaves the choice to the routers.

        Returns:
          `Output`.

        Raises:
          ValueError: a cache with scanned layers, a filled cache with S > 1, a prompt longer than
            the cache.
        """
        B, S = tokens.shape
        if cache is not None:
            self._check_cache(cache, S)
        if positions is None:
            positions = positions_of(segment_ids, (B, S))
            if cache is not None:
                positions = positions + cache.lengths[:, None]
        live = None if segment_ids is None else segment_ids > 0
        lengths = None if cache is None else cache.lengths
        place = Tokens(shard.row(segment_ids), positions, live, lengths, shard)

        stream, state = self.embed(tokens), None
        stats: list[RouterStats] = []
        layer_caches: list[LayerCache] = []
        x = None
        for i, block in enumerate(self.layers):
            pinned = None if routes is None else routes[:, :, i]
            if cache is None:
                found = self._remat(block)(stream, state, place, None, pinned)
                stream, state, layer_stats, _ = found
            else:
                # A token more is many small launches: the norm of the next layer is none of them.
                after = self.layers[i + 1].input_norm[...] if i + 1 < len(self.layers) else None
                x = block.normed(stream) if x is None else x
                stream, state, layer_stats, layer_cache, x = block.forward(
                    stream, x, state, place, cache.layers[i], pinned, after
                )
                assert layer_cache is not None
                layer_caches.append(layer_cache)
            stats.append(layer_stats)
        merged = jax.tree.map(lambda *xs: jnp.stack(xs), *stats)
        if len(self.stacks):
            rest = None if routes is None else routes[:, :, len(self.layers) :]
            stream, scanned = self._scan(stream, state, place, rest)
            merged = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), merged, scanned)
        merged = shard.join(merged, live)

        if cache is not None:
            added = jnp.sum(live, axis=1, dtype=jnp.int32) if live is not None else S
            cache = Cache(tuple(layer_caches), cache.lengths + added, filled=True)
        hidden = rms_norm(
            stream, self.final_norm[...], self.model.norm_eps, self.numerics, read_by="logits"
        )
        return Output(hidden, merged, cache)

    def head(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The operands of the head's matmul: hidden [..., D] and the tied embedding [V, D].

        With `logits` in the fp32 set they have the dtype that parameters are stored in (and are
        accumulated in float32): widening bfloat16 weights would copy them and change no product.
        """
        head, dtype = self.embedding[...], self.numerics.activation_dtype
        if "logits" in self.numerics.fp32:
            dtype = jnp.promote_types(dtype, head.dtype)
        return hidden.astype(dtype), head.astype(dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., D] -> [..., V] in the policy's `logits` dtype."""
        embedding = self.embedding[...]
        if isinstance(embedding, Quantized):
            hidden = hidden.astype(self.numerics.activation_dtype)
            return tied(hidden, embedding, self.numerics.dtype("logits"))
        hidden, head = self.head(hidden)
        return tied_logits(hidden, head, self.numerics.dtype("logits"))

    def embed(self, tokens: jax.Array) -> jax.Array:
        """[B, S] int32 -> the residual stream [B, S, D] in front of the first layer."""
        embedding, dtype = self.embedding[...], self.numerics.activation_dtype
        if isinstance(embedding, Quantized):
            x = embedding[tokens].dequantize(dtype)[..., 0]
        else:
            x = jnp.take(embedding, tokens, axis=0).astype(dtype)
        x = x.astype(self.numerics.dtype("residual_merge"))
        if self.model.residual_scaling:
            x = (x + self.input_bias[...].astype(x.dtype)) * self.input_scale[...].astype(x.dtype)
        return x.astype(self.numerics.dtype("residual"))

    def _check_cache(self, cache: Cache, length: int) -> None:
        if len(self.stacks):
            raise ValueError("cached decoding runs unrolled layers; convert with `forms.convert`")
        if cache.filled and length > 1:
            raise ValueError(f"a filled cache continues by one token at a time; got {length}")
        if length > cache.capacity:
            raise ValueError(f"a prompt of {length} tokens for a cache of {cache.capacity}")

    def _remat(self, block: Block, *, scanned: bool = False):
        if self.model.remat == "none":
            return block
        policy = REMAT_POLICIES[self.model.remat]
        # Inside a scan nothing can merge the recomputation with the first computation anyway.
        return jax.checkpoint(block.__call__, policy=policy, prevent_cse=not scanned)

    def _scan(
        self, stream: jax.Array, state: jax.Array | None, place: Tokens, routes: jax.Array | None
    ) -> tuple[jax.Array, RouterStats]:
        """Scans over the stacks, one period of layers a step."""
        split = [nnx.split(stack) for stack in self.stacks]
        if routes is not None:  # [B, S, layers, k] -> [steps, period, B, S, k]
            routes = jnp.moveaxis(routes, 2, 0)
            routes = routes.reshape(-1, len(split), *routes.shape[1:])

        def step(carry, xs):
            (stream, state), (weights, pinned), stats = carry, xs, []
            for i, ((graph, _), layer) in enumerate(zip(split, weights, strict=True)):
                call = self._remat(nnx.merge(graph, layer), scanned=True)
                own = None if pinned is None else pinned[i]
                stream, state, layer_stats, _ = call(stream, state, place, None, own)
                stats.append(layer_stats)
            return (stream, state), jax.tree.map(lambda *xs: jnp.stack(xs), *stats)

        (stream, _), stats = jax.lax.scan(step, (stream, state), ([s for _, s in split], routes))
        return stream, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stats)


def positions_of(segment_ids: jax.Array | None, shape: tuple[int, int]) -> jax.Array:
    """Index of each token in its document: [B, S] int32, counted from every change of segment."""
    index = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    if segment_ids is None:
        return index
    change = segment_ids[:, 1:] != segment_ids[:, :-1]
    start = jnp.where(jnp.pad(change, ((0, 0), (1, 0)), constant_values=True), index, 0)
    return index - jax.lax.cummax(start, axis=1)
