import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest

from zaya_jax import lora
from zaya_jax.model.block import RouterStats
from zaya_jax.model.functional import bias_declarations
from zaya_jax.train.telemetry import bias_metrics, norms, router_metrics, total_norm


def stats_of(counts) -> RouterStats:
    L = len(counts)
    return RouterStats(
        jnp.array(counts), jnp.zeros(L), index=None, probability=None, z=None,
        residual_norm=jnp.ones(L),
    )  # fmt: skip


def model_with(experiment, **router):
    model = experiment.model
    return dataclasses.replace(model, router=dataclasses.replace(model.router, **router))


@pytest.mark.parametrize(
    "counts, entropy", [([[5]], 1), ([[0]], 1), ([[4, 4]], 1), ([[8, 0]], 0), ([[0, 0]], 0)]
)
def test_load_entropy_at_its_ends(experiment, counts, entropy):
    model = model_with(experiment, experts=len(counts[0]), skip="none")
    found = router_metrics(model, stats_of(counts))
    np.testing.assert_allclose(found["load_entropy"], [entropy])


def test_experts_with_less_than_a_tenth_of_an_even_load_are_dead(experiment):
    counts = [[97, 100, 2, 1, 50], [25, 25, 25, 25, 0], [0, 0, 0, 0, 9]]  # the last one: skip
    found = router_metrics(experiment.model, stats_of(counts))
    np.testing.assert_array_equal(found["dead_experts"], [2, 0, 0])
    np.testing.assert_allclose(found["max_load"], [0.5, 0.25, 0])
    np.testing.assert_allclose(found["min_load"], [1 / 200, 0.25, 0])
    np.testing.assert_allclose(found["skip_share"], [0.2, 0, 1])


@pytest.mark.parametrize("layers", ["unroll", "scan"])
def test_bias_range_is_in_the_order_of_layers_and_without_the_skip_class(experiment, layers):
    model = dataclasses.replace(experiment.model, num_layers=3, layers=layers)
    declared = bias_declarations(model)
    table = 10.0 * np.arange(3)[:, None] + np.array([3, 1, 2, 0, -1])
    biases = {path: jnp.array(table[np.array(d.layers)]) for path, d in declared.items()}
    found = bias_metrics(model, declared, biases)
    np.testing.assert_array_equal(found["max_bias"], [3, 13, 23])
    np.testing.assert_array_equal(found["min_bias"], [0, 10, 20])


def test_norms_of_groups_add_up_to_the_whole(experiment):
    declared = lora.trained(experiment)
    tree = {path: jnp.full(d.shape, 2.0, jnp.bfloat16) for path, d in declared.items()}
    found = norms(declared, tree)
    assert set(found) == {d.group for d in declared.values()}
    size = sum(math.prod(d.shape) for d in declared.values())
    np.testing.assert_allclose(total_norm(found), 2 * math.sqrt(size), rtol=1e-6)
