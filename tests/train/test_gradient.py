import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zaya_jax.train import gradient as gradient_lib
from zaya_jax.train import state as train_state
from zaya_jax.train.gradient import make_gradient
from zaya_jax.train.step import make_train_step


@pytest.fixture
def uneven(batch):
    """Four rows that have other numbers of live tokens and of targets each."""
    four = jax.tree.map(lambda x: np.concatenate([x, np.roll(x, 1, axis=0)]), batch)
    live, weights = four.segment_ids.copy(), four.loss_weights.copy()
    live[2, 9:] = 0
    weights[2, 8:] = 0
    weights[3, 5:20] *= 3
    return four._replace(segment_ids=live, loss_weights=weights)


def accumulating(experiment, parts, **model):
    return dataclasses.replace(
        experiment,
        model=dataclasses.replace(experiment.model, **model),
        train=dataclasses.replace(experiment.train, batch_size=4, microbatches=parts),
    )


def test_microbatches_equal_the_full_batch(experiment, uneven):
    """In float64, where nothing but an error of ours could tell them apart: to 1e-9."""
    with jax.enable_x64(True):
        ends = []
        for parts in (1, 2):
            balanced = dataclasses.replace(experiment.balance, z_loss=1e-3)
            these = accumulating(
                dataclasses.replace(experiment, balance=balanced),
                parts,
                param_dtype="float64",
                activation_dtype="float64",
            )
            step, state = make_train_step(these), train_state.init(these)
            for _ in range(2):
                state, metrics = step(state, {}, uneven)
            ends.append((state, metrics))
        whole = ends[0]
        assert whole[1].tokens == uneven.loss_weights.sum()
        for other in ends[1:]:
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), whole, other
            )
            np.testing.assert_array_equal(whole[1].load, other[1].load)
            jax.tree.map(np.testing.assert_array_equal, whole[0].biases, other[0].biases)


def bfloat16(experiment, rate, param_dtype="float32"):
    optim = dataclasses.replace(
        experiment.optim, learning_rate=rate, warmup_steps=0, schedule="constant", weight_decay=0.0
    )
    computed = accumulating(experiment, 1, activation_dtype="bfloat16", param_dtype=param_dtype)
    return dataclasses.replace(computed, optim=optim)


RATE = 2e-7  # Adam moves each weight by about this much in a step


def moved(experiment, batch, param_dtype):
    """A matrix before and after three steps, float32."""
    these = bfloat16(experiment, RATE, param_dtype)
    state, path = train_state.init(these), "layers.0.attention.q"
    before = np.asarray(state.params[path]).astype(np.float32)
    step = make_train_step(these)
    for _ in range(3):
        state, _ = step(state, {}, batch)
    return before, np.asarray(state.params[path].astype(jnp.float32))


def test_updates_smaller_than_a_bfloat16_step_are_not_lost(experiment, batch):
    before, after = moved(experiment, batch, "float32")
    assert np.median(np.abs(after - before)) > 2 * RATE
    assert np.mean(after.astype(jnp.bfloat16) == before.astype(jnp.bfloat16)) > 0.9


@pytest.mark.slow
def test_without_float32_masters_they_are(experiment, batch):
    before, after = moved(experiment, batch, "bfloat16")
    assert np.mean(after == before) > 0.9


@pytest.mark.slow  # four programs to compile
@pytest.mark.parametrize("layers", ["unroll", "scan"])
def test_casting_once_a_step_changes_no_bit(experiment, uneven, monkeypatch, layers):
    these = accumulating(
        experiment, 2, activation_dtype="bfloat16", layers=layers, num_layers=3, remat="full"
    )
    state = train_state.init(these)
    results = []
    for cast in (gradient_lib.for_compute, lambda model, params: params):
        monkeypatch.setattr(gradient_lib, "for_compute", cast)
        results.append(jax.jit(make_gradient(these))(state.params, {}, state.biases, uneven))
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert {g.dtype for g in results[0][0].values()} == {np.dtype("float32")}


def test_adapters_are_trained_over_a_base_that_stays(experiment, batch):
    these = dataclasses.replace(
        experiment, lora=dataclasses.replace(experiment.lora, rank=2), optim=experiment.optim
    )
    base = jax.jit(lambda: train_state.init(experiment))()
    state = train_state.init(these).replace(biases=dict(base.biases))
    step, losses = make_train_step(these), []
    before = jax.tree.map(np.asarray, (base.params, state.biases, state.params))
    for _ in range(8):
        state, metrics = step(state, base.params, batch)
        losses.append(float(metrics.loss))
    assert losses[-1] < losses[0]
    assert set(metrics.grad_norms) == {"matrix"}
    jax.tree.map(np.testing.assert_array_equal, before[0], jax.tree.map(np.asarray, base.params))
    jax.tree.map(np.testing.assert_array_equal, before[1], jax.tree.map(np.asarray, state.biases))
    assert all(np.any(np.asarray(state.params[path]) != old) for path, old in before[2].items())
