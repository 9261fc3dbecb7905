import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zaya_jax import optim
from zaya_jax.config import SCHEDULES, Attention, Experiment, Model, Optim, Router, Train
from zaya_jax.model import functional

MODEL = Model(
    vocab_size=32,
    hidden_size=16,
    num_layers=3,
    expert_width=8,
    eos_id=1,
    attention=Attention(heads=2, kv_heads=1, head_dim=8),
    router=Router(experts=3, width=8),
)
STEPS = 100
OPTIM = Optim(learning_rate=0.1, warmup_steps=10, final_fraction=0.2, weight_decay=0.5)
EXPERIMENT = Experiment(model=MODEL, train=Train(steps=STEPS), optim=OPTIM)


def test_cosine_warms_up_peaks_and_ends_at_its_fraction():
    rate = optim.schedule(OPTIM, STEPS)
    assert rate(0) == pytest.approx(0.01)
    assert rate(9) == rate(10) == pytest.approx(0.1)
    assert rate(STEPS - 1) == pytest.approx(0.02)
    middle = 10 + (STEPS - 1 - 10) / 2
    assert rate(middle) == pytest.approx(0.06)
    falling = [float(rate(step)) for step in range(10, STEPS)]
    assert falling == sorted(falling, reverse=True)
    assert rate(10 * STEPS) == pytest.approx(0.02)  # a resumed run may be longer than planned


def test_constant_stays_at_the_peak():
    rate = optim.schedule(Optim(learning_rate=0.1, warmup_steps=0, schedule="constant"), STEPS)
    assert rate(0) == rate(STEPS - 1) == pytest.approx(0.1)


def test_every_schedule_of_the_config_is_built():
    for name in SCHEDULES:
        assert math.isfinite(optim.schedule(Optim(schedule=name), 1000)(5))


def test_only_matrices_decay():
    params = {k: jnp.ones(d.shape) for k, d in functional.declarations(MODEL).items()}
    optimizer = optim.optimizer(EXPERIMENT)
    still = {k: jnp.zeros_like(v) for k, v in params.items()}
    updates, _ = jax.jit(optimizer.update)(still, optimizer.init(params), params)
    moved = {k for k, update in updates.items() if np.any(update)}
    groups = optim.groups(MODEL)
    assert moved == {d.path for d in groups["matrix"]}
    assert {"embedding", "final_norm"} & moved == set()
    # Decoupled: rate times decay, whatever the gradient's scale.
    np.testing.assert_allclose(next(iter(updates[k] for k in moved)), -0.01 * 0.5, rtol=1e-6)


def test_the_gradient_is_clipped_by_its_global_norm():
    params = {k: jnp.zeros(d.shape) for k, d in functional.declarations(MODEL).items()}
    gradients = {k: jnp.ones_like(v) for k, v in params.items()}
    optimizer = optim.optimizer(EXPERIMENT)
    _, state = jax.jit(optimizer.update)(gradients, optimizer.init(params), params)
    first = optax.tree_utils.tree_get(state, "mu")
    seen = {k: mu / (1 - OPTIM.b1) for k, mu in first.items()}
    assert optax.tree.norm(seen) == pytest.approx(OPTIM.clip_norm, rel=1e-5)


def test_groups_hold_every_parameter_once_and_the_table_says_so():
    groups = optim.groups(MODEL)
    paths = [d.path for members in groups.values() for d in members]
    assert sorted(paths) == sorted(functional.declarations(MODEL))
    table = optim.describe(EXPERIMENT)
    sizes = [int(line.split()[3].replace(",", "")) for line in table.splitlines()]
    assert sum(sizes) == functional.parameter_count(MODEL)
