import dataclasses
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train.final import final_state
from zaya_jax.config import Faults
from zaya_jax.train import faults, loop, metrics, setup
from zaya_jax.train import state as train_state
from zaya_jax.train.loop import Diverged
from zaya_jax.train.step import make_train_step


class Poisoned:
    """Batches of which some would ruin a run: weights that are no numbers, or cancel each other."""

    def __init__(self, batches, infinite=(), spiking=(), skipping=0, after=0):
        self.batches, self.infinite, self.spiking = batches, infinite, spiking
        self.skipping, self.after = skipping, after

    def __len__(self):
        return len(self.batches)

    def batch(self, number):
        batch = self.batches.batch(number + (self.skipping if number >= self.after else 0))
        if number in self.infinite:
            batch = batch._replace(loss_weights=np.full_like(batch.loss_weights, np.inf))
        if number in self.spiking:
            return spike(batch)
        return batch


def spike(batch):
    """The targets' weights add up to little, each being large: a gradient of hundreds."""
    weights = np.where(np.arange(batch.tokens.shape[1]) % 2, 1000, -999).astype(np.float32)
    return batch._replace(loss_weights=batch.loss_weights * weights)


def poisoned(**where):
    """`setup.prepare_data` with `Poisoned` batches."""

    def prepared(*args):
        found = prepare(*args)
        return found._replace(train=Poisoned(found.train, **where))

    return prepared


prepare = setup.prepare_data


@pytest.fixture
def poison(monkeypatch):
    """Puts `Poisoned` batches under the next runs."""
    return lambda **where: monkeypatch.setattr(setup, "prepare_data", poisoned(**where))


@pytest.fixture
def quiet(listener):
    """Listens, and does nothing."""
    return listener()


@pytest.fixture(scope="module")
def sick(experiment):
    """Ten steps; two refused steps in a row lead back to a checkpoint."""
    train = dataclasses.replace(
        experiment.train, steps=10, checkpoint_every=4, eval_every=5, keep_checkpoints=1
    )
    section = Faults(spike=5.0, window=2, limit=2, rollbacks=1)
    return dataclasses.replace(experiment, train=train, faults=section)


@pytest.fixture(scope="module")
def whole_sick(sick, listener, tmp_path_factory):
    """The last state of a run that nobody disturbed, faults and all."""
    folder = tmp_path_factory.mktemp("sick")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "prepare_data", poisoned(infinite={5}, spiking={6}))
        loop.train(sick, folder, listener())
    return final_state(folder, sick)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_what_is_refused(experiment):
    section = Faults(spike=3.0, window=4)
    state, one = faults.init(), jnp.float32(1)

    def verdict(state, norm, *numbers):
        return bool(faults.accepts(section, state, numbers, jnp.float32(norm)))

    for norm in (1, 100, 3, 4):  # too early for spikes
        assert verdict(state, norm, one)
        state = faults.after(section, state, jnp.array(True), jnp.float32(norm))
    np.testing.assert_allclose(state.mean_norm, 27)
    assert verdict(state, 80, one) and not verdict(state, 82, one)
    for number in (np.nan, np.inf, -np.inf):
        assert not verdict(state, 1, one, jnp.float32(number))
        assert not verdict(state, number)
    refused = faults.after(section, state, jnp.array(False), jnp.float32(np.nan))
    refused = faults.after(section, refused, jnp.array(False), jnp.float32(1e9))
    assert (refused.in_a_row, refused.skipped, refused.accepted) == (2, 2, 4)
    assert refused.mean_norm == state.mean_norm
    taken = faults.after(section, refused, jnp.array(True), jnp.float32(7))
    assert (taken.in_a_row, taken.skipped, taken.accepted) == (0, 2, 5)
    np.testing.assert_allclose(taken.mean_norm, 22)  # the newest weighs 1 / window
    assert faults.accepts(Faults(spike=0), state, (one,), jnp.float32(1e9))


def test_a_refused_step_moves_nothing_but_counters(sick, batch):
    step = make_train_step(sick)
    state = jax.device_put(train_state.init(sick), jax.devices()[0])
    for _ in range(2):
        state, metrics = step(state, {}, batch)
        assert metrics.accepted
    before = jax.tree.map(np.array, state)
    infinite = batch._replace(loss_weights=np.full_like(batch.loss_weights, np.inf))
    for number, bad in enumerate((infinite, spike(batch)), 1):
        state, metrics = step(state, {}, bad)
        assert not metrics.accepted
        assert metrics.in_a_row == metrics.skipped == number
        counted = before.faults.replace(skipped=number, in_a_row=number)
        assert_same(state, before.replace(step=2 + number, cursor=2 + number, faults=counted))
    assert np.isfinite(metrics.loss)  # a spike it was, and no number that is none
    state, metrics = step(state, {}, batch)
    assert metrics.accepted and metrics.in_a_row == 0 and metrics.skipped == 2


def test_weights_that_a_step_would_break_stay(sick, batch):
    state = jax.device_put(train_state.init(sick), jax.devices()[0])
    spoilt = jax.tree.map(lambda x: x * jnp.inf if x.ndim else x, state.optimizer)
    before = jax.tree.map(np.array, state.params)
    state, metrics = make_train_step(sick)(state.replace(optimizer=spoilt), {}, batch)
    assert np.isfinite(metrics.loss) and np.isfinite(metrics.grad_norm)
    assert not metrics.accepted
    assert_same(state.params, before)


def test_a_single_bad_batch_costs_a_step(sick, quiet, poison, tmp_path):
    poison(infinite={4})
    assert loop.train(sick, tmp_path, quiet).step == 10
    state = final_state(tmp_path, sick)
    assert (state.faults.skipped, state.faults.accepted, state.faults.rollbacks) == (1, 9, 0)
    (line,) = [r for r in metrics.read(tmp_path) if r.get("skipped") and r["step"] == 5]
    assert line["loss"] is None and line["grad_norm"] is None


def test_a_run_goes_back_and_past_the_batches_that_it_cannot_take(sick, quiet, poison, tmp_path):
    poison(infinite={5}, spiking={6})
    assert loop.train(sick, tmp_path / "run", quiet).step == 10
    told = quiet.text.getvalue()
    assert "step 6: not taken: loss nan" in told and "step 7: not taken: loss " in told
    assert "back to step 4, and on with batch 7 (it was at 4)" in told
    state = final_state(tmp_path / "run", sick)
    assert (state.step, state.cursor) == (10, 13)
    assert (state.faults.skipped, state.faults.rollbacks, state.faults.in_a_row) == (2, 1, 0)
    steps = [r["step"] for r in metrics.read(tmp_path / "run") if "loss" in r]
    assert steps == list(range(1, 11))

    # It ends as a run whose fifth batch is the eighth, and so on.
    poison(skipping=3, after=4)
    loop.train(sick, tmp_path / "other", quiet)
    assert_same(state.params, final_state(tmp_path / "other", sick).params)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("step 6: not taken", marks=pytest.mark.slow),
        pytest.param("back to step 4", marks=pytest.mark.slow),
        pytest.param("step 5: held out", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_dies_or_is_stopped_around_faults_ends_as_if_it_had_not(
    sick, quiet, poison, listener, whole_sick, tmp_path, moment
):
    class Died(BaseException):
        pass

    def die():
        raise Died

    poison(infinite={5}, spiking={6})
    with pytest.raises(Died):
        loop.train(sick, tmp_path, listener(moment, die))
    loop.train(sick, tmp_path, quiet)
    assert_same(final_state(tmp_path, sick), whole_sick)


@pytest.mark.slow
def test_a_signal_between_a_checkpoint_and_a_rollback_changes_nothing(
    sick, quiet, poison, listener, whole_sick, tmp_path
):
    poison(infinite={5}, spiking={6})
    stopping = listener("step 5: held out", lambda: signal.raise_signal(signal.SIGTERM))
    assert loop.train(sick, tmp_path, stopping).step == 5
    assert (tmp_path / "checkpoints" / "5").is_dir()
    loop.train(sick, tmp_path, quiet)
    assert "back to step 4" in quiet.text.getvalue()
    assert_same(final_state(tmp_path, sick), whole_sick)


def test_a_run_that_cannot_go_on_says_what_may_help(sick, quiet, poison, tmp_path):
    poison(infinite=range(5, 100))
    with pytest.raises(Diverged, match="2 steps in a row were not taken, after 1 rollbacks") as e:
        loop.train(sick, tmp_path, quiet)
    saved = tmp_path / "checkpoints" / "4"
    assert f"--config.train.init_from={saved} " in str(e.value)
    assert "optim.learning_rate" in str(e.value)
    state = final_state(tmp_path, sick)
    assert state.step == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


@pytest.mark.slow
def test_before_the_first_checkpoint_a_run_goes_back_to_its_start(sick, quiet, poison, tmp_path):
    poison(infinite={0, 1})
    assert loop.train(sick, tmp_path, quiet).step == 10
    assert "back to step 0, and on with batch 2" in quiet.text.getvalue()
    assert final_state(tmp_path, sick).cursor == 12
