"""Controllers in a closed loop with a router that does not learn.

E = 16 experts, T = 4096 tokens a step. The router prefers some experts: token t of a step has the
logits `skew * favour + noise[t]`, probabilities softmax of them, and goes to the largest of
probability plus bias. The biases start at 0 and move once a step. H is the entropy of the loads
over log E; its ceiling is 0.9993, the noise of counting 4096 tokens. A run has 1500 steps.

Draws of seed s: `numpy.random.default_rng(s)` (PCG64, float64) gives `favour = standard_normal(16)`
first, then for each step `noise = standard_normal((4096, 16))`. Both skews and all controllers of a
seed see the same draws. The project's reference table was made with seed 0 in float64.

    pytest -s -m slow tests/test_balance_simulation.py    # prints the tables of docs/optimizers.md
"""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zaya_jax import balance
from zaya_jax.config import Balance

E, T, MILD, STRONG = 16, 4096, 1.0, 3.0


def adamw(rate):
    return Balance(kind="adamw", rate=rate)


def pid(kp, ki, kd=0.0, **more):
    return Balance(kind="pid", kp=kp, ki=ki, kd=kd, **more)


SIGN = Balance(kind="sign", rate=1e-3)

# Of the reference table, for seed 0: steps to H >= 0.99, mean H of the last 200 of 1500 steps. What
# it calls proportional control moves the biases by 0.1 times the error: a pid with ki alone.
REFERENCE = {
    (MILD, SIGN): (171, 0.9992),
    (MILD, adamw(1e-4)): (np.inf, 0.947),
    (MILD, adamw(1e-3)): (219, 0.9993),
    (MILD, adamw(3e-3)): (63, 0.9991),
    (MILD, adamw(1e-2)): (27, 0.9986),
    (MILD, pid(0.0, 0.1)): (24, 0.9993),
    (STRONG, SIGN): (np.inf, 0.921),
    (STRONG, adamw(1e-3)): (639, 0.993),
    (STRONG, adamw(3e-3)): (317, 0.964),
    (STRONG, adamw(1e-2)): (np.inf, 0.924),
}


def counts_of(probabilities, biases):
    """Tokens [E] of each expert; probabilities [E, T]."""
    best, choice = probabilities[0] + biases[0], jnp.zeros(T, jnp.int32)
    for e in range(1, E):  # all of it elementwise over T: several times faster than argmax
        found = probabilities[e] + biases[e]
        best, choice = jnp.maximum(best, found), jnp.where(found > best, e, choice)
    choice = jax.lax.optimization_barrier(choice)  # else it is computed once for every expert
    return jnp.sum(choice == jnp.arange(E)[:, None], axis=1, dtype=jnp.int32)


def entropy(counts):
    share = counts / jnp.sum(counts, axis=-1, keepdims=True)
    return -jnp.sum(jnp.where(share > 0, share * jnp.log(share), 0), axis=-1) / jnp.log(E)


class Loop:
    """Several controllers, each with a skew, on the same draws.

    cases: (skew, Balance) of each.
    """

    def __init__(self, cases):
        self.cases = cases
        self.controllers = [balance.controller(each) for _, each in cases]
        self.scan = jax.jit(self._scan)

    def start(self):
        zero = jnp.zeros(E)  # float64 where that is enabled
        return [(zero, controller.init(zero)) for controller in self.controllers]

    def _step(self, carry, draw):
        favour, noise = draw
        probabilities = {
            skew: jax.nn.softmax(skew * favour[:, None] + noise.T, axis=0)
            for skew in {skew for skew, _ in self.cases}
        }
        following, found = [], []
        for (skew, _), controller, (biases, state) in zip(
            self.cases, self.controllers, carry, strict=True
        ):
            counts = counts_of(probabilities[skew], biases)
            error = balance.error(counts, E).astype(biases.dtype)
            updates, state = controller.update(error, state, biases)
            following.append((optax.apply_updates(biases, updates), state))
            found.append(entropy(counts))
        return following, jnp.stack(found)

    def _scan(self, carry, favours, noise):
        return jax.lax.scan(self._step, carry, (favours, noise))

    def run(self, seed, steps, change=lambda step, favour: favour, at_once=50):
        """Entropies [steps, cases]; `change` gives the preferences of a step."""
        rng = np.random.default_rng(seed)
        favour = rng.standard_normal(E)
        carry, found = self.start(), []
        dtype = jnp.zeros(0).dtype
        for first in range(0, steps, at_once):
            noise = np.empty((at_once, T, E), dtype)
            for i in range(at_once):
                noise[i] = rng.standard_normal((T, E))
            favours = np.stack([change(first + i, favour) for i in range(at_once)])
            carry, entropies = self.scan(carry, favours.astype(dtype), noise)
            found.append(np.asarray(entropies))
        return np.concatenate(found)[:steps]


def steps_to(entropies, level=0.99):
    """First step at or above the level; infinite if there is none."""
    there = np.nonzero(entropies >= level)[0]
    return there[0] if len(there) else np.inf


def summary(entropies):
    """Steps to 0.99 and mean of the last 200, of each case."""
    return [(steps_to(each), float(np.mean(each[-200:]))) for each in np.asarray(entropies).T]


def name(skew, config):
    gains = (
        f"kp {config.kp:g}, ki {config.ki:g}" if config.kind == "pid" else f"rate {config.rate:g}"
    )
    return f"{'mild' if skew == MILD else 'strong':<7}{config.kind}, {gains}"


def test_mild_rows_of_the_reference_table():
    rows = {case: row for case, row in REFERENCE.items() if case[0] == MILD and row[0] < 250}
    entropies = Loop(list(rows)).run(0, 250)
    assert entropies[0] == pytest.approx(0.727, abs=1e-3)
    for each, (steps, _) in zip(entropies.T, rows.values(), strict=True):
        assert steps_to(each) == pytest.approx(steps, abs=1)


@pytest.mark.slow
def test_the_reference_table_in_float64():
    with jax.enable_x64(True):
        found = summary(Loop(list(REFERENCE)).run(0, 1500))
    for case, (steps, last) in zip(REFERENCE, found, strict=True):
        print(f"{name(*case):<34}{steps:>6.0f} {last:.4f}")
    for (case, (steps, mean)), (found_steps, found_mean) in zip(
        REFERENCE.items(), found, strict=True
    ):
        # The reference has three or four digits.
        assert found_steps == steps, name(*case)
        assert found_mean == pytest.approx(mean, abs=6e-4), name(*case)


def only_expert_0(step, favour, steps=30):
    """For some steps every token is sure of expert 0, and no bias below 1 can change it."""
    return 60.0 * (np.arange(E) == 0) if step < steps else favour


def test_pid_step_response_with_and_without_anti_windup():
    gains = {"kp": 0.05, "ki": 0.03}
    bounded, wound = pid(**gains, integral_limit=0.3), pid(**gains, integral_limit=1e9)
    loop = Loop([(MILD, bounded), (MILD, wound)])
    # A plain step: the limit is not reached, and does nothing.
    plain = loop.run(1, 200)
    np.testing.assert_array_equal(plain[:, 0], plain[:, 1])
    assert steps_to(plain[:, 0]) == pytest.approx(64, abs=5)
    assert plain[-50:].mean() > 0.998
    # A step behind thirty of saturation: what has piled up must be taken back, and expert 0 starves
    # the longer the more it is.
    entropies = loop.run(1, 600, only_expert_0)
    assert np.all(entropies[:30] == 0)
    with_limit, without = (steps_to(each[30:]) for each in entropies.T)
    assert with_limit == pytest.approx(105, abs=8)
    assert without > 2 * with_limit


def test_loads_recover_after_an_expert_is_shifted():
    def shifted(step, favour):  # expert 0 becomes e^2 times as likely
        return favour + 2.0 * (np.arange(E) == 0) * (step >= 400)

    cases = {"sign": SIGN, "adamw": adamw(1e-3), "pid": pid(0.1, 0.01)}
    entropies = Loop([(MILD, each) for each in cases.values()]).run(1, 800, shifted)
    assert np.all(entropies[350:400].mean(axis=0) > 0.998)
    assert np.all(entropies[400] < 0.7)
    recovered = [steps_to(each[400:]) for each in entropies.T]
    assert recovered == pytest.approx([205, 165, 202], abs=8)
    assert np.all(entropies[-50:].mean(axis=0) > 0.995)


# Medians over seeds 0 to 31, in float32: steps to H >= 0.99 (infinite: more than half never get
# there) and mean H of the last 200 steps.
MEDIANS = {
    (MILD, SIGN): (179, 0.9991),
    (MILD, adamw(1e-4)): (np.inf, 0.9326),
    (MILD, adamw(1e-3)): (240, 0.9993),
    (MILD, adamw(3e-3)): (70.5, 0.9991),
    (MILD, adamw(1e-2)): (27, 0.9985),
    (MILD, pid(0.0, 0.1)): (24.5, 0.9993),
    (MILD, pid(0.1, 0.01)): (247, 0.9992),
    (MILD, pid(0.0, 0.003)): (781, 0.9985),
    (STRONG, SIGN): (np.inf, 0.8953),
    (STRONG, adamw(1e-3)): (668, 0.9715),
    (STRONG, adamw(3e-3)): (390.5, 0.9329),
    (STRONG, adamw(1e-2)): (np.inf, 0.8455),
    (STRONG, pid(0.1, 0.01)): (np.inf, 0.8302),
    (STRONG, pid(0.0, 0.003)): (1415.5, 0.9701),
}


@pytest.mark.slow
def test_medians_over_32_seeds():
    loop = Loop(list(MEDIANS))
    with ThreadPoolExecutor(2) as pool:
        runs = np.array(list(pool.map(lambda seed: summary(loop.run(seed, 1500)), range(32))))
    medians = np.median(runs, axis=0)  # of [seeds, cases, 2]
    for i, (case, (steps, mean)) in enumerate(zip(MEDIANS, medians, strict=True)):
        never = np.sum(np.isinf(runs[:, i, 0]))
        print(f"{name(*case):<34}{steps:>7.1f} {mean:.4f}  never: {never}")
    for (case, (steps, mean)), found in zip(MEDIANS.items(), medians, strict=True):
        # Swinging loads are chaotic: rounding alone moves the strong rows of a seed.
        mild = case[0] == MILD
        assert found[1] == pytest.approx(mean, abs=1e-3 if mild else 0.02), name(*case)
        if mild or case[1].kind != "pid":
            assert found[0] == pytest.approx(steps, rel=0.05 if mild else 0.15), name(*case)
