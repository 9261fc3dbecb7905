import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zaya_jax import muon, optim
from zaya_jax.config import Attention, Factors, Model, Muon, Optim, Router
from zaya_jax.config.schema import SCHEDULES
from zaya_jax.model import functional

MODEL = Model(
    vocab_size=32,
    hidden_size=16,
    num_layers=2,
    expert_width=8,
    eos_id=1,
    attention=Attention(heads=2, kv_heads=1, head_dim=8),
    router=Router(experts=3, width=8),
)
# Some parameters of every group and kind of shape: all of them only take longer to compile.
SOME = ("embedding", "final_norm", "attention.q", "conv_grouped", "experts.gate_up", "experts.down")
DECLARATIONS = {
    path: declaration
    for path, declaration in functional.declarations(MODEL).items()
    if path.endswith(SOME)
}
SIZE = sum(math.prod(d.shape) for d in DECLARATIONS.values())
STEPS = 100
OPTIM = Optim(learning_rate=0.1, warmup_steps=10, final_fraction=0.2, weight_decay=0.5)
MUON = dataclasses.replace(OPTIM, kind="muon")


def ones():
    return {path: jnp.ones(d.shape) for path, d in DECLARATIONS.items()}


def gradients(seed=0):
    rng = np.random.default_rng(seed)
    return {
        path: jnp.asarray(1e-3 * rng.standard_normal(d.shape), jnp.float32)
        for path, d in DECLARATIONS.items()
    }


def first_updates(config, given, params=None):
    optimizer = optim.optimizer(config, STEPS, DECLARATIONS)
    params = ones() if params is None else params
    updates, state = jax.jit(optimizer.update)(given, optimizer.init(params), params)
    return updates, state


def in_group(*names):
    return {path for path, d in DECLARATIONS.items() if d.group in names}


def bytes_of(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


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


def test_wsd_is_level_and_then_falls_in_a_line():
    rate = optim.schedule(dataclasses.replace(OPTIM, schedule="wsd", decay_fraction=0.25), STEPS)
    assert rate(4) == pytest.approx(0.05)
    assert {round(float(rate(step)), 6) for step in range(10, 75)} == {0.1}
    falling = np.array([float(rate(step)) for step in range(74, STEPS)])
    np.testing.assert_allclose(np.diff(falling), -0.08 / 25, rtol=1e-4)
    assert rate(STEPS - 1) == rate(10 * STEPS) == pytest.approx(0.02)


def test_constant_stays_at_the_peak():
    rate = optim.schedule(Optim(learning_rate=0.1, warmup_steps=0, schedule="constant"), STEPS)
    assert rate(0) == rate(STEPS - 1) == pytest.approx(0.1)


def test_every_schedule_of_the_config_is_built():
    assert set(optim.SHAPES) == set(SCHEDULES)
    for name in SCHEDULES:
        assert math.isfinite(optim.schedule(Optim(schedule=name), 1000)(5))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_only_matrices_decay(kind):
    config = dataclasses.replace(OPTIM, kind=kind)
    updates, _ = first_updates(config, jax.tree.map(jnp.zeros_like, ones()))
    moved = {path for path, update in updates.items() if np.any(update)}
    assert moved == in_group("matrix")
    # Decoupled: rate times decay, whatever the gradient's scale.
    for path in moved:
        np.testing.assert_allclose(updates[path], -0.01 * 0.5, rtol=1e-6)


def test_the_gradient_is_clipped_by_the_norm_of_all_groups_together():
    given = jax.tree.map(jnp.ones_like, ones())
    _, state = first_updates(MUON, given)
    momentum = [
        leaf
        for inner in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, muon.MuonState))
        if isinstance(inner, muon.MuonState)
        for leaf in jax.tree.leaves(inner)
    ]
    seen = optax.tree.norm(momentum) / (1 - MUON.muon.momentum)
    matrices = sum(math.prod(DECLARATIONS[path].shape) for path in in_group("matrix"))
    share = math.sqrt(matrices / SIZE)
    assert seen == pytest.approx(MUON.clip_norm * share, rel=1e-5)


def test_adamw_is_that_of_optax():
    params, ours = ones(), optim.optimizer(OPTIM, STEPS, DECLARATIONS)
    theirs = optax.adamw(
        optim.schedule(OPTIM, STEPS), OPTIM.b1, OPTIM.b2, OPTIM.eps,
        weight_decay=OPTIM.weight_decay,
        mask={path: d.group == "matrix" for path, d in DECLARATIONS.items()},
    )  # fmt: skip
    states = [ours.init(params), theirs.init(params)]
    updates = [jax.jit(ours.update), jax.jit(theirs.update)]
    for step in range(5):
        found = []
        for i in range(2):
            u, states[i] = updates[i](gradients(step), states[i], params)
            found.append(u)
        for path in params:
            np.testing.assert_allclose(found[0][path], found[1][path], rtol=2e-5, atol=1e-8)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_adamw_equals_torch_for_twenty_steps(decay):
    torch = pytest.importorskip("torch")
    config = Optim(
        learning_rate=0.01, schedule="constant", warmup_steps=0, weight_decay=decay, clip_norm=1e9
    )
    path = next(iter(sorted(in_group("matrix"))))
    found = {path: jnp.ones(DECLARATIONS[path].shape)}
    optimizer = optim.optimizer(config, STEPS, {path: DECLARATIONS[path]})
    state, update = optimizer.init(found), jax.jit(optimizer.update)
    theirs = torch.nn.Parameter(torch.ones(DECLARATIONS[path].shape))
    peer = torch.optim.AdamW(
        [theirs], lr=0.01, betas=(config.b1, config.b2), eps=config.eps, weight_decay=decay
    )
    for step in range(20):
        gradient = gradients(step)[path]
        updates, state = update({path: gradient}, state, found)
        found = optax.apply_updates(found, updates)
        theirs.grad = torch.tensor(np.asarray(gradient))
        peer.step()
    moved = np.linalg.norm(theirs.detach().numpy() - 1)
    assert np.linalg.norm(found[path] - theirs.detach().numpy()) < 1e-5 * moved


def test_muon_moves_matrices_and_adamw_the_rest():
    given = gradients()
    config = dataclasses.replace(MUON, weight_decay=0.0, clip_norm=1e9)
    updates, _ = first_updates(config, given)
    adam, _ = first_updates(dataclasses.replace(config, kind="adamw"), given)
    for path, d in DECLARATIONS.items():
        if d.group == "matrix":
            # At the first step the direction of the momentum is that of the gradient.
            expected = -0.01 * muon.update_of(given[path], Muon(), halves=False)
            np.testing.assert_allclose(updates[path], expected, rtol=1e-3, atol=1e-6)
        else:
            np.testing.assert_array_equal(updates[path], adam[path])


def test_split_gate_up_splits_these_and_nothing_else():
    given = gradients()
    split = dataclasses.replace(MUON, muon=Muon(split_gate_up=True))
    whole, _ = first_updates(MUON, given)
    halves, _ = first_updates(split, given)
    changed = {path for path in whole if not np.array_equal(whole[path], halves[path])}
    assert changed == {path for path in DECLARATIONS if path.endswith("gate_up")} and changed


def test_without_momentum_only_what_adamw_moves_has_a_state():
    optimizer = optim.optimizer(
        dataclasses.replace(MUON, muon=Muon(momentum=0.0)), STEPS, DECLARATIONS
    )
    rest = sum(2 * 4 * math.prod(d.shape) for d in DECLARATIONS.values() if d.group != "matrix")
    counters = 4 * (1 + len({d.group for d in DECLARATIONS.values()} - {"matrix"}))
    assert bytes_of(optimizer.init(ones())) == rest + counters
    buffer = sum(4 * math.prod(DECLARATIONS[path].shape) for path in in_group("matrix"))
    with_momentum = optim.optimizer(MUON, STEPS, DECLARATIONS).init(ones())
    assert bytes_of(with_momentum) == rest + counters + buffer


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_factors_scale_the_rate_of_their_group(kind):
    config = dataclasses.replace(OPTIM, kind=kind)
    scaled = dataclasses.replace(config, factors=Factors(matrix=3.0, vector=0.5))
    plain, _ = first_updates(config, gradients())
    found, _ = first_updates(scaled, gradients())
    times = {"matrix": 3.0, "vector": 0.5}
    for path, d in DECLARATIONS.items():
        np.testing.assert_allclose(
            found[path], times.get(d.group, 1.0) * plain[path], rtol=1e-6, err_msg=path
        )


def test_a_factor_of_zero_freezes_a_group_and_holds_nothing_for_it():
    frozen = dataclasses.replace(MUON, factors=Factors(embedding=0.0))
    updates, state = first_updates(frozen, gradients())
    assert not np.any(updates["embedding"])
    assert bytes_of(first_updates(MUON, gradients())[1]) - bytes_of(state) >= 2 * 4 * 32 * 16


def test_a_subset_of_the_parameters_can_be_trained():
    # As adapters are: the optimizer goes by the declarations, not by the model.
    some = {path: DECLARATIONS[path] for path in in_group("matrix")}
    optimizer = optim.optimizer(MUON, STEPS, some)
    params = {path: ones()[path] for path in some}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert set(updates) == set(some)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_table_holds_every_parameter_once_and_says_its_rule(kind):
    groups = optim.groups(DECLARATIONS)
    paths = [d.path for members in groups.values() for d in members]
    assert sorted(paths) == sorted(DECLARATIONS)
    table = optim.describe(
        dataclasses.replace(
            OPTIM, kind=kind, muon=Muon(split_gate_up=True), factors=Factors(vector=0.0)
        ),
        DECLARATIONS,
    )
    lines = table.splitlines()
    sizes = [int(line.split()[3].replace(",", "")) for line in lines]
    assert sum(sizes) == SIZE
    assert [line.split()[0] for line in lines] == (
        ["matrix"] * (2 if kind == "muon" else 1) + ["embedding", "convolution", "vector"]
    )
    assert ("muon of halves, decay 0.5, rate x 1" in table) == (kind == "muon")
    assert lines[-1].endswith("adamw, frozen") and "decay 0, rate x 1" in lines[-2]
