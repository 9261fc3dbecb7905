import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

from zaya_jax import balance
from zaya_jax.config import Attention, Balance, Model, Router
from zaya_jax.config.kinds import BALANCERS
from zaya_jax.model.block import RouterStats

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
    st.lists(st.lists(st.integers(0, 50_000), min_size=5, max_size=5), min_size=2, max_size=2),
    st.integers(1, 5),
)
def test_errors_sum_to_zero_and_leave_other_classes_alone(counts, experts):
    found = balance.error(jnp.array(counts), experts)
    np.testing.assert_allclose(found.sum(-1), 0, atol=1e-6)
    assert not np.any(found[:, experts:])


def test_a_batch_without_routed_tokens_has_no_error():
    assert not np.any(balance.error(jnp.array([0, 0, 0, 9]), experts=3))


def run(config, errors, start):
    """The biases [steps, classes] after each error."""
    controller = balance.controller(config)

    @jax.jit
    def step(carry, error):
        biases, state = carry
        updates, state = controller.update(error, state, biases)
        biases = optax.apply_updates(biases, updates)
        return (biases, state), biases

    start = jnp.asarray(start)
    return np.asarray(jax.lax.scan(step, (start, controller.init(start)), errors)[1])


@pytest.mark.parametrize("kind", [kind for kind in BALANCERS if kind != "none"])
def test_overloaded_biases_fall_and_the_skip_bias_never_moves(kind):
    config = Balance(kind=kind, rate=1e-2, ki=0.01, kd=0.05)
    error = balance.error(jnp.array([8, 1, 3, 7]), 3)
    biases = run(config, jnp.tile(error, (50, 1)), [0.0, 0.0, 0.0, -1.0])
    assert biases[-1, 0] < -0.1 and biases[-1, 1] > 0.1
    np.testing.assert_array_equal(biases[:, 3], -1)


def test_none_moves_nothing():
    controller = balance.controller(Balance(kind="none"))
    updates, _ = controller.update(jnp.ones(4), controller.init(jnp.zeros(4)), jnp.zeros(4))
    assert not np.any(updates)


def test_sign_moves_by_its_rate_and_only_where_there_is_an_error():
    biases = run(Balance(kind="sign", rate=0.25), jnp.array([[0.5, -1e-3, 0.0]]), [0.0, 0.0, 0.0])
    np.testing.assert_array_equal(biases[0], [-0.25, 0.25, 0])


@hypothesis.given(
    gains=st.tuples(*[st.floats(0, 1)] * 3),
    decay=st.floats(0, 0.99),
    limit=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
def test_pid_is_the_textbook_one(gains, decay, limit, seed):
    """Its updates add up to the positional form, from any start."""
    kp, ki, kd = gains
    errors = np.random.default_rng(seed).uniform(-0.5, 0.5, (30, 4)).astype(np.float32)
    config = Balance(kind="pid", kp=kp, ki=ki, kd=kd, integral_limit=limit, derivative_decay=decay)
    start = np.array([0.0, 0.5, -0.5, -1.0], np.float32)
    integral, derivative, last, expected = 0.0, 0.0, 0.0, []
    for error in errors.astype(np.float64):
        integral = np.clip(integral + ki * error, -limit, limit)
        derivative = decay * derivative + (1 - decay) * (error - last)
        last = error
        expected.append(start - (kp * error + integral + kd * derivative))
    np.testing.assert_allclose(run(config, jnp.asarray(errors), start), expected, atol=1e-5)


def test_the_integral_term_stays_within_its_limit():
    error = jnp.tile(jnp.array([0.75, -0.25, -0.25, -0.25]), (100, 1))
    config = Balance(kind="pid", kp=0.0, ki=0.1, integral_limit=0.5)
    bounded = run(config, error, jnp.zeros(4))
    np.testing.assert_allclose(bounded[-1], [-0.5, 0.5, 0.5, 0.5], atol=1e-5)
    # And leaves it at once when the error turns.
    turned = run(config, jnp.concatenate([error, -error[:1]]), jnp.zeros(4))
    np.testing.assert_allclose(turned[-1] - turned[-2], 0.1 * error[0], atol=1e-6)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_every_layer_gets_its_own_error(layers):
    model = dataclasses.replace(MODEL, layers=layers)
    counts = jax.random.randint(jax.random.key(0), (4, 4), 0, 100)
    found = balance.errors(model, counts)
    expected = balance.error(counts, 3)
    rows = jnp.concatenate([jnp.atleast_2d(found[path]) for path in sorted(found)])
    np.testing.assert_array_equal(rows, expected)


def stats_of(counts, probability, z=(0.0,)):
    none = jnp.zeros(())
    return RouterStats(
        jnp.asarray(counts), none, none, jnp.asarray(probability), jnp.asarray(z), none
    )


def test_without_weights_there_are_no_losses_and_nothing_is_computed():
    found = balance.losses(Balance(), MODEL, stats=None)  # would fail if it were looked at
    assert found == 0.0 and isinstance(found, float)


def test_even_loads_cost_one_and_a_favourite_costs_more():
    even = balance.load_loss(jnp.array([5, 5, 5, 9]), jnp.array([0.2, 0.2, 0.2, 0.4]), 3)
    assert even == pytest.approx(1)
    favoured = balance.load_loss(jnp.array([8, 1, 1, 9]), jnp.array([0.6, 0.1, 0.1, 0.2]), 3)
    f, p = np.array([0.8, 0.1, 0.1]), np.array([6, 1, 1]) / 8
    assert favoured == pytest.approx(3 * np.sum(f * p)) and favoured > 1.5


def test_losses_are_weighted_means_over_layers():
    counts = [[8, 1, 1, 9], [5, 5, 5, 9], [0, 0, 0, 7], [1, 1, 8, 0]]
    probability = [[0.6, 0.1, 0.1, 0.2]] * 4
    stats = stats_of(counts, probability, [1.0, 2.0, 3.0, 6.0])
    each = [balance.load_loss(jnp.array(c), jnp.array(probability[0]), 3) for c in counts]
    assert each[2] == 0  # no token went to an expert
    found = balance.losses(Balance(aux_loss=0.1, z_loss=0.01), MODEL, stats)
    assert found == pytest.approx(0.1 * np.mean(each) + 0.01 * 3, rel=1e-6)


def test_the_gradient_lowers_the_probability_of_the_overloaded_and_leaves_the_skip_class():
    counts = jnp.array([8, 1, 1, 9])

    def loss(logits):
        return balance.load_loss(counts, jax.nn.softmax(logits), 3)

    gradient = jax.grad(loss)(jnp.array([0.3, 0.1, 0.2, 1.0]))
    assert gradient[0] > 0 > max(gradient[1], gradient[2])
    assert gradient[3] == pytest.approx(0, abs=1e-7)
