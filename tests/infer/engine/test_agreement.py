"""Trainer and engine in bfloat16: the ladder of the report (section IV-D), measured.

Two programs of one network round differently. The parts that the report computes in float32 shrink
that; a router that flips between two experts all the same is pinned by replay.
"""

import dataclasses
import random

import jax
import numpy as np
import pytest

from zaya_jax.infer import Sampling
from zaya_jax.infer.engine import Engine, Options, Request
from zaya_jax.model import functional
from zaya_jax.rl.agreement import agreement

COUNT, LENGTH = 128, 48


def measured(loaded, *, replay: bool):
    """Rollouts of the engine, and how well the whole network agrees with their probabilities."""
    options = Options(rows=16, row_sizes=(16,), page=4, capacity=LENGTH, chunks=(16,))
    draw = random.Random(0)
    requests = [
        Request(
            [draw.randrange(3, 290) for _ in range(draw.randint(4, 16))],
            LENGTH - 16,
            Sampling(1.0, seed=seed),
            routes=True,
            ignore_eos=True,
        )
        for seed in range(COUNT)
    ]
    results = Engine(loaded, options).generate(requests)
    tokens = np.zeros((COUNT, LENGTH), np.int32)
    layers, top_k = loaded.model.num_layers, loaded.model.router.top_k
    routes = np.zeros((COUNT, LENGTH, layers, top_k), np.int32)
    sampled, weights = np.zeros((2, COUNT, LENGTH), np.float32)
    for row, (request, result) in enumerate(zip(requests, results, strict=True)):
        n, end = len(request.prompt), len(request.prompt) + len(result.tokens)
        tokens[row, :end] = [*request.prompt, *result.tokens]
        routes[row, : end - 1] = result.routes
        sampled[row, n - 1 : end - 1], weights[row, n - 1 : end - 1] = result.logprobs, 1

    @jax.jit
    def forward(tokens, routes):
        decoder = functional.merge(loaded.model, loaded.params, loaded.biases)
        out = decoder(tokens, routes=routes)
        return jax.nn.log_softmax(decoder.logits(out.hidden).astype("float32")), out.stats.index

    logprobs, index = forward(tokens, routes if replay else None)
    own = np.take_along_axis(np.asarray(logprobs), np.roll(tokens, -1, 1)[..., None], -1)[..., 0]
    flips = (np.moveaxis(np.asarray(index), 0, 2) != routes).any((-2, -1))
    return agreement(own, sampled, weights), float(flips[weights > 0].mean())


@pytest.mark.slow
def test_each_rung_of_the_ladder_agrees_better(network):
    loaded = network("bfloat16", num_layers=6)
    everything = dataclasses.replace(loaded.model, numerics="training")
    nothing = dataclasses.replace(loaded.model, numerics="reference", residual_in_fp32=False)
    plain, plain_flips = measured(dataclasses.replace(loaded, model=nothing), replay=False)
    set_, set_flips = measured(dataclasses.replace(loaded, model=everything), replay=False)
    pinned, pinned_flips = measured(dataclasses.replace(loaded, model=everything), replay=True)
    rungs = {"plain": plain, "float32 set": set_, "with replay": pinned}
    for name, found in rungs.items():
        print(f"{name}: KL {found.kl:.1e}, Pearson {found.pearson:.6f}")
    print(
        f"tokens with a route that flipped: {plain_flips:.2%}, {set_flips:.2%}, {pinned_flips:.2%}"
    )
    assert plain.kl > set_.kl > pinned.kl
    assert plain.pearson < set_.pearson < pinned.pearson
    assert plain_flips > set_flips > pinned_flips == 0
