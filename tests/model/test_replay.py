"""Router replay: a forward pass whose routers choose what they are told to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import tiny_model
from zaya_jax.model.functional import init, merge


@pytest.fixture(scope="module", params=["unroll", "scan"])
def network(request):
    model = tiny_model(layers=3, form=request.param)
    params, biases = init(model, jax.random.key(0))
    ids = np.random.default_rng(0).integers(3, 97, (2, 7))
    segments = np.array([[1] * 4 + [2] * 3, [1] * 5 + [0] * 2])

    def run(params, routes=None):
        out = merge(model, params, biases)(ids, segments, routes=routes)
        return out.hidden, out.stats

    return model, params, jax.jit(run), segments


def as_routes(stats, segments, dead):
    """[L, B, S, k] to [B, S, L, k]; what padding chose is whatever a payload holds there."""
    routes = np.moveaxis(np.asarray(stats.index), 0, 2)
    return np.where(segments[..., None, None] > 0, routes, dead)


def test_its_own_choices_change_nothing(network):
    _, params, run, segments = network
    hidden, stats = run(params)
    again, replayed = run(params, as_routes(stats, segments, 0))
    np.testing.assert_allclose(again[segments > 0], hidden[segments > 0], atol=1e-6)
    np.testing.assert_array_equal(replayed.counts, stats.counts)
    np.testing.assert_array_equal(replayed.index, stats.index)


def test_other_choices_are_taken_and_weigh_what_the_router_gives_them(network):
    model, params, run, segments = network
    hidden, stats = run(params)
    other = (as_routes(stats, segments, 0) + 1) % model.router.experts
    moved, replayed = run(params, other)
    live = segments > 0
    np.testing.assert_array_equal(np.moveaxis(np.asarray(replayed.index), 0, 2)[live], other[live])
    assert replayed.counts.sum() == live.sum() * model.num_layers
    assert np.abs(moved - hidden)[live].max() > 1e-4

    # The routers learn: gradients reach what makes the probabilities.
    gradients = jax.grad(lambda p: jnp.sum(jnp.square(run(p, other)[0])))(params)
    router = {path: g for path, g in gradients.items() if path.endswith("router.out")}
    assert router and all(np.abs(g).max() > 0 for g in router.values())
