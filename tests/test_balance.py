import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from zaya_jax import balance
from zaya_jax.config import BALANCERS, Attention, Balance, Model, Router

MODEL = Model(
    vocab_size=32,
    hidden_size=16,
    num_layers=4,
    expert_width=8,
    eos_id=1,
    attention=Attention(heads=2, kv_heads=1, head_dim=8),
    router=Router(experts=3, width=8),
)


def test_the_error_is_that_of_equation_5():
    found = balance.error(jnp.array([6, 3, 1, 5]), experts=3)  # the last class is the skip class
    np.testing.assert_allclose(found, [0.6 - 1 / 3, 0.3 - 1 / 3, 0.1 - 1 / 3, 0], atol=1e-7)
    assert found.dtype == jnp.float32


@hypothesis.given(
    st.lists(st.lists(st.integers(0, 50_000), min_size=5, max_size=5), min_size=1, max_size=3),
    st.integers(1, 5),
)
def test_errors_sum_to_zero_and_leave_other_classes_alone(counts, experts):
    found = balance.error(jnp.array(counts), experts)
    np.testing.assert_allclose(found.sum(-1), 0, atol=1e-6)
    assert not np.any(found[:, experts:])


def test_a_batch_without_routed_tokens_has_no_error():
    assert not np.any(balance.error(jnp.array([0, 0, 0, 9]), experts=3))


def test_registry_offers_what_the_config_accepts():
    assert set(balance.CONTROLLERS) == set(BALANCERS)


def test_overloaded_biases_fall_and_the_skip_bias_never_moves():
    controller = balance.controller(Balance(rate=1e-2))
    biases = jnp.array([0.0, 0.0, 0.0, -1.0])
    state = controller.init(biases)
    for _ in range(50):
        updates, state = controller.update(balance.error(jnp.array([8, 1, 3, 7]), 3), state, biases)
        biases = optax.apply_updates(biases, updates)
    assert biases[0] < -0.1 and biases[1] > 0.1 and biases[3] == -1


def test_none_moves_nothing():
    controller = balance.controller(Balance(kind="none"))
    updates, _ = controller.update(jnp.ones(4), controller.init(jnp.zeros(4)), jnp.zeros(4))
    assert not np.any(updates)


def test_adamw_balances_a_skewed_router():
    # A router that does not learn, with favourites: only the biases can spread its tokens.
    experts, tokens = 8, 2048
    keys = jax.random.split(jax.random.key(0), 2)
    logits = jax.random.normal(keys[0], (experts,)) + jax.random.normal(keys[1], (tokens, experts))
    probabilities = jax.nn.softmax(logits)
    controller = balance.controller(Balance(rate=2e-3))

    def counts(biases):
        return jnp.bincount(jnp.argmax(probabilities + biases, axis=1), length=experts)

    @jax.jit
    def step(carry, _):
        biases, state = carry
        found = counts(biases)
        updates, state = controller.update(balance.error(found, experts), state, biases)
        share = found / tokens
        entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(share), 0)) / jnp.log(experts)
        return (optax.apply_updates(biases, updates), state), entropy

    start = jnp.zeros(experts)
    _, entropy = jax.lax.scan(step, (start, controller.init(start)), length=400)
    assert entropy[0] < 0.9
    assert entropy[-50:].min() > 0.99


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_every_layer_gets_its_own_error(layers):
    model = dataclasses.replace(MODEL, layers=layers)
    counts = jax.random.randint(jax.random.key(0), (4, 4), 0, 100)
    found = balance.errors(model, counts)
    expected = balance.error(counts, 3)
    rows = jnp.concatenate([jnp.atleast_2d(found[path]) for path in sorted(found)])
    np.testing.assert_array_equal(rows, expected)
