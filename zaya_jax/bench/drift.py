"""How far bfloat16 moves each layer from float32, here and in transformers.

The weights are rounded to bfloat16 once; float32 runs use the same rounded values, so that what is
seen is the arithmetic's drift. Columns, each an RMS relative to the float32 stream of that layer:
ours in the `reference` numerics, ours in the `training` numerics, transformers, and the two
programs in bfloat16 against each other. `routes` is the share of tokens whose expert differs from
the float32 run's.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import torch

from zaya_jax.bench import peer
from zaya_jax.config import Model
from zaya_jax.model.attention import Tokens
from zaya_jax.model.decoder import positions_of
from zaya_jax.model.functional import Biases, Params, merge


@dataclasses.dataclass(frozen=True)
class LayerDrift:
    """One layer; see the module."""

    layer: int
    reference: float
    training: float
    transformers: float
    between: float
    routes_reference: float
    routes_training: float
    routes_transformers: float


def _streams(model: Model, params: Params, biases: Biases, ids: np.ndarray):
    """The residual stream after each layer [L, B, S, D], and the routes [L, B, S]."""

    @jax.jit
    def run(params, biases, tokens):
        decoder = merge(model, params, biases)
        place = Tokens(None, positions_of(None, tokens.shape), None)
        stream, state = decoder.embed(tokens), None
        streams, routes = [], []
        for block in decoder.layers:
            stream, state, stats, _ = block(stream, state, place)
            streams.append(stream.astype(jnp.float32))
            routes.append(stats.index[..., 0])
        return jnp.stack(streams), jnp.stack(routes)

    streams, routes = run(params, biases, jnp.asarray(ids))
    return np.asarray(streams), np.asarray(routes)


def _oracle_streams(oracle, ids: np.ndarray):
    streams, routes = [], []

    def on_layer(module, inputs, outputs):
        streams.append(outputs[0].detach().float().numpy())

    def on_gate(module, inputs, outputs):
        probabilities = torch.softmax(outputs[0].detach(), dim=-1).float()
        biased = probabilities + module.balancing_biases.float()
        routes.append(biased.argmax(-1).reshape(ids.shape).numpy())

    handles = [layer.register_forward_hook(on_layer) for layer in oracle.model.layers]
    handles += [layer.mlp.gate.register_forward_hook(on_gate) for layer in oracle.model.layers]
    with torch.no_grad():
        oracle(torch.tensor(ids), use_cache=False)
    for handle in handles:
        handle.remove()
    return np.stack(streams), np.stack(routes)


def measure(model: Model, batch: int = 2, length: int = 256, seed: int = 0) -> list[LayerDrift]:
    """Drift of every layer of a random model of this shape on random tokens."""
    wide = dataclasses.replace(
        model, numerics="reference", param_dtype="float32", activation_dtype="float32",
        layers="unroll",
    )  # fmt: skip
    oracle = peer.torch_model(wide, seed)
    for tensor in oracle.parameters():
        tensor.data.copy_(tensor.data.bfloat16().float())
    params, biases = peer.from_torch(wide, oracle)
    ids = np.random.default_rng(seed).integers(3, model.vocab_size, (batch, length))

    exact, exact_routes = _streams(wide, params, biases, ids)
    runs = {}
    narrow = {path: value.astype(jnp.bfloat16) for path, value in params.items()}
    for numerics in ("reference", "training"):
        half = dataclasses.replace(
            wide, numerics=numerics, param_dtype="bfloat16", activation_dtype="bfloat16"
        )
        runs[numerics] = _streams(half, narrow, biases, ids)
    for tensor in oracle.parameters():
        # Not `oracle.bfloat16()`, which would round the rotary table and the biases as well.
        tensor.data = tensor.data.bfloat16()
    theirs, their_routes = _oracle_streams(oracle, ids)

    def rms(x: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(x.astype(np.float64)))))

    rows = []
    for i in range(model.num_layers):
        scale = rms(exact[i])
        rows.append(
            LayerDrift(
                layer=i,
                reference=rms(runs["reference"][0][i] - exact[i]) / scale,
                training=rms(runs["training"][0][i] - exact[i]) / scale,
                transformers=rms(theirs[i] - exact[i]) / scale,
                between=rms(runs["reference"][0][i] - theirs[i]) / scale,
                routes_reference=float(np.mean(runs["reference"][1][i] != exact_routes[i])),
                routes_training=float(np.mean(runs["training"][1][i] != exact_routes[i])),
                routes_transformers=float(np.mean(their_routes[i] != exact_routes[i])),
            )
        )
    return rows
