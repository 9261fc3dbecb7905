import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zaya_jax.config import Balance
from zaya_jax.model import forms, functional
from zaya_jax.train import state as train_state
from zaya_jax.train.gradient import make_gradient
from zaya_jax.train.gradient import sums_of as eager_sums_of
from zaya_jax.train.step import make_eval_step, make_train_step, rates

sums_of = jax.jit(eager_sums_of, static_argnums=0)


@pytest.fixture(scope="module")
def start(experiment):
    """A first state; copy it before a step, which takes its buffers."""
    return jax.device_put(train_state.init(experiment), jax.devices()[0])


def copy(tree):
    return jax.tree.map(jnp.copy, tree)


def test_loss_is_the_cross_entropy_of_the_weighted_targets(experiment, start, batch):
    nats, _, targets, _ = sums_of(experiment.model, start.params, start.biases, batch)

    @jax.jit
    def whole_distribution(params, biases):
        decoder = functional.merge(experiment.model, params, biases)
        out = decoder(batch.tokens, batch.segment_ids, batch.positions)
        return jax.nn.log_softmax(decoder.logits(out.hidden))

    logprob = whole_distribution(start.params, start.biases)
    picked = np.take_along_axis(np.asarray(logprob), batch.targets[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(nats, -(picked * batch.loss_weights).sum(), rtol=1e-5)
    assert targets == batch.loss_weights.sum()
    evaluated = make_eval_step(experiment.model)(start.params, start.biases, batch)
    np.testing.assert_allclose(evaluated[0], nats, rtol=1e-5)
    assert evaluated[2].shape == (1, 4)


def test_loss_falls_and_metrics_are_in_range(experiment, start, batch):
    step, state, losses = make_train_step(experiment), copy(start), []
    for _ in range(30):
        state, metrics = step(state, {}, batch)
        losses.append(float(metrics.loss))
    assert losses[0] == pytest.approx(np.log(300), rel=0.02)
    assert losses[-1] < 0.5 * losses[0]
    assert state.step == 30
    assert metrics.tokens == batch.loss_weights.sum()
    assert np.all((metrics.load_entropy >= 0) & (metrics.load_entropy <= 1 + 1e-6))
    np.testing.assert_allclose(metrics.load.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(metrics.load.max(1), metrics.max_load)
    assert not np.any(metrics.skip_share)
    assert np.all(metrics.routing_entropy <= np.log(5) + 1e-6)


def test_the_step_moves_experts_biases_against_their_load_and_no_others(experiment, start, batch):
    state, metrics = make_train_step(experiment)(copy(start), {}, batch)
    for layer in range(experiment.model.num_layers):
        moved = state.biases[f"layers.{layer}.router.biases"]
        assert moved[-1] == -1
        overload = np.asarray(metrics.load[layer]) - 1 / 4
        np.testing.assert_array_equal(np.sign(moved[:-1]), -np.sign(overload))


def with_other_rates(experiment, **balance):
    """The same experiment but for the numbers that a search varies."""
    return dataclasses.replace(
        experiment,
        optim=dataclasses.replace(experiment.optim, learning_rate=0.5),
        balance=dataclasses.replace(experiment.balance, rate=0.25, **balance),
    )


def test_rates_that_are_given_take_the_place_of_the_configs(experiment, start, batch):
    as_constants = make_train_step(experiment)(copy(start), {}, batch)
    other = make_train_step(with_other_rates(experiment))
    given = other(copy(start), {}, batch, rates(experiment))
    chex.assert_trees_all_close(given, as_constants, rtol=1e-4, atol=1e-6)


def test_trials_of_a_search_share_one_program(experiment, start, batch):
    """Or each would compile its step anew, which takes longer than a small run."""
    pid = dataclasses.replace(experiment, balance=Balance(kind="pid"))
    start = start.replace(balance=train_state.controller(pid).init(start.biases))
    one, other = (
        make_train_step(these).lower(start, {}, batch, rates(these)).as_text()
        for these in (pid, with_other_rates(pid, kp=0.1, ki=0.2, kd=0.3))
    )
    assert one == other


def test_a_z_loss_is_minimised_beside_the_loss(experiment, start, batch):
    """PaLM's: the mean of log^2 Z over the weighted targets, and its gradient."""

    def squares(params):
        decoder = functional.merge(experiment.model, params, start.biases)
        out = decoder(batch.tokens, batch.segment_ids, batch.positions)
        hidden, embedding = decoder.head(out.hidden)
        log_z = jax.nn.logsumexp(hidden @ embedding.T, axis=-1)
        return (log_z**2 * batch.loss_weights).sum() / batch.loss_weights.sum()

    expected, more = jax.jit(jax.value_and_grad(squares))(start.params)
    with_it = dataclasses.replace(experiment.train, z_loss=0.1)
    plain, totals = jax.jit(make_gradient(experiment))(start.params, {}, start.biases, batch)
    both, seen = jax.jit(make_gradient(dataclasses.replace(experiment, train=with_it)))(
        start.params, {}, start.biases, batch
    )
    np.testing.assert_allclose(seen.z_loss, 0.1 * expected, rtol=1e-5)
    assert totals.z_loss == 0 and seen.loss == totals.loss
    for path, value in both.items():
        wanted = np.asarray(plain[path] + 0.1 * more[path], np.float64)
        bound = 1e-4 * max(float(np.abs(wanted).max()), 1e-3)
        np.testing.assert_allclose(value, wanted, rtol=0, atol=bound, err_msg=path)


def test_padding_counts_nowhere(experiment, start, batch):
    padded = batch.segment_ids == 0
    other = batch._replace(
        tokens=np.where(padded, 77, batch.tokens), targets=np.where(padded, 55, batch.targets)
    )
    step = make_train_step(experiment)
    one, seen = step(copy(start), {}, batch)
    two, seen_too = step(copy(start), {}, other)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    jax.tree.map(np.testing.assert_array_equal, seen, seen_too)
    live = int((~padded).sum())
    *_, stats = sums_of(experiment.model, start.params, start.biases, batch)
    assert np.all(np.asarray(stats.counts).sum(1) == live)


def test_a_batch_of_padding_alone_changes_no_gradient(experiment, start, batch):
    empty = batch._replace(
        segment_ids=np.zeros_like(batch.segment_ids),
        loss_weights=np.zeros_like(batch.loss_weights),
    )
    state, metrics = make_train_step(experiment)(copy(start), {}, empty)
    assert metrics.loss == 0 and metrics.grad_norm == 0 and metrics.tokens == 0
    for path, value in start.biases.items():
        np.testing.assert_array_equal(state.biases[path], value)


@pytest.mark.slow  # two programs to compile
def test_scanned_layers_train_as_unrolled_ones(experiment, start, batch):
    scanned, params, biases = forms.convert(
        experiment.model, copy(start.params), copy(start.biases), "scan"
    )
    other = dataclasses.replace(experiment, model=scanned)
    runs = []
    for these, first in (
        (experiment, copy(start)),
        (other, train_state.from_weights(other, params, biases)),
    ):
        step, losses = make_train_step(these), []
        for _ in range(4):
            first, metrics = step(first, {}, batch)
            losses.append(np.append(metrics.load_entropy, metrics.loss))
        runs.append(losses)
    np.testing.assert_allclose(*runs, rtol=2e-4)
