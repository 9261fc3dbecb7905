"""The search for the crossing point finds it, knows how well it knows it, and follows a student."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from zaya_jax.errors import UserError
from zaya_jax.rl.curriculum import irt, plot
from zaya_jax.rl.curriculum.calibrate import calibrate
from zaya_jax.rl.curriculum.irt import Settings

GROUP = 16


def asked(mu: float, s: float, rounds: int, seed: int, settings: Settings, known=None):
    """The posterior after so many rounds with a logistic student."""
    search, student = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    known = known or irt.start(settings, search)
    for _ in range(rounds):
        difficulty = max(0, round(irt.propose(known, settings, search)))
        right = int(student.binomial(GROUP, expit((mu - difficulty) / s)))
        known = irt.observe(known, difficulty, right, GROUP, settings, search)
    return known


@pytest.mark.parametrize(("mu", "s"), [(7.3, 1.5), (1.2, 0.4), (14.0, 2.5)])
def test_finds_where_a_simulated_student_solves_half(mu, s):
    settings = Settings(particles=512)
    found = [irt.estimate(asked(mu, s, 30, seed, settings)) for seed in range(3)]
    assert all(abs(each.mu - mu) < 0.6 for each in found), found
    assert all(s / 2.5 < each.s < s * 2.5 for each in found), found
    assert sum(each.low <= mu <= each.high for each in found) >= 2
    assert all(each.high - each.low < 2.5 for each in found)


def test_asks_mostly_near_the_crossing_point():
    known = asked(7.0, 1.5, 30, 0, Settings(particles=512))
    late = [successes / tries for _, successes, tries in known.history[10:]]
    assert 0.35 < np.mean(late) < 0.65


def test_agrees_with_the_posterior_on_a_grid():
    """Without forgetting, the particles are the posterior of the prior and all outcomes."""
    settings = Settings(particles=2048, decay=1.0)
    known = asked(6.0, 1.0, 8, 3, settings)
    mu, log_s = np.meshgrid(np.linspace(-20, 30, 1001), np.linspace(-3.5, 3.5, 101), indexing="ij")
    log = -(((mu - 5) / 5) ** 2 + (log_s / 0.75) ** 2) / 2
    for difficulty, k, n in known.history:
        p = np.clip(expit((mu - difficulty) * np.exp(-log_s)), 1e-300, 1)
        log += k * np.log(p) + (n - k) * np.log1p(-np.minimum(p, 1 - 1e-16))
    weights = np.exp(log - log.max())
    exact = float((weights * mu).sum() / weights.sum())
    spread = float(np.sqrt((weights * (mu - exact) ** 2).sum() / weights.sum()))
    assert known.resampled > 0
    assert abs(irt.estimate(known).mu - exact) < 0.2 * spread


def test_follows_a_student_who_learns():
    settings = Settings(particles=512, decay=0.8)
    known = asked(4.0, 1.0, 25, 0, settings)
    learnt = asked(9.0, 1.0, 25, 1, settings, known)
    assert abs(irt.estimate(known).mu - 4) < 0.7
    assert abs(irt.estimate(learnt).mu - 9) < 0.7


def test_an_outcome_moves_belief_to_its_side():
    settings = Settings(particles=512, resample_below=0.0)
    generator = np.random.default_rng(0)
    prior = irt.start(settings, generator)
    hard = irt.observe(prior, 5.0, 0, GROUP, settings, generator)
    easy = irt.observe(prior, 5.0, GROUP, GROUP, settings, generator)
    assert irt.estimate(hard).mu < irt.estimate(prior).mu < irt.estimate(easy).mu
    assert irt.effective_particles(prior) == pytest.approx(512)
    assert irt.effective_particles(hard) < 512


def test_the_rate_that_is_asked_for_is_the_rate_of_the_drawn_student():
    """Equation 13: at the proposed difficulty the particle's p is the target."""
    settings = Settings(particles=64, target=0.7, explore=0.0)
    generator = np.random.default_rng(0)
    known = irt.start(settings, generator)
    for _ in range(20):
        difficulty = irt.propose(known, settings, generator)
        assert np.isclose(irt.rate(difficulty, known.mu, known.log_s), 0.7).any()


@given(st.integers(0, 2**32 - 1))
def test_state_survives_json_exactly(seed):
    settings = Settings(particles=8)
    generator = np.random.default_rng(seed)
    known = irt.observe(irt.start(settings, generator), 3.5, 3, 4, settings, generator)
    again = irt.Posterior.from_state(json.loads(json.dumps(known.state())))
    for name in ("mu", "log_s", "log_weights"):
        np.testing.assert_array_equal(getattr(again, name), getattr(known, name))
    assert (again.history, again.resampled) == (known.history, known.resampled)


@pytest.mark.parametrize("outcome", [(1.0, 5, 4), (1.0, -1, 4), (1.0, 0, 0), (np.nan, 1, 4)])
def test_an_outcome_that_is_none_is_refused(outcome):
    settings = Settings(particles=8)
    generator = np.random.default_rng(0)
    with pytest.raises(ValueError, match="no outcome"):
        irt.observe(irt.start(settings, generator), *outcome, settings, generator)


@pytest.mark.parametrize(
    "field",
    [{"spread": 0.0}, {"sharpness": -1.0}, {"particles": 1}, {"target": 0.9}, {"explore": 1.5},
     {"decay": 0.0}],
)  # fmt: skip
def test_settings_that_cannot_be(field):
    with pytest.raises(UserError, match=next(iter(field))):
        Settings(**field)


def test_many_environments_are_calibrated_together():
    students = {"easy": (9.0, 1.0), "hard": (2.0, 0.5), "beyond": (30.0, 1.0), "broken": (0.0, 1.0)}
    student = np.random.default_rng(0)
    rounds = []

    def ask(questions):
        rounds.append(questions)
        for name, difficulty in questions:
            mu, s = students[name]
            chance = expit((mu - difficulty) / s)
            yield None if name == "broken" else int(student.binomial(GROUP, chance))

    found = calibrate(
        list(students), lambda q: list(ask(q)), rounds=25, group=GROUP,
        settings=Settings(particles=256), highest={"beyond": 12},
    )  # fmt: skip
    assert abs(found["easy"].start - 9) <= 1 and abs(found["hard"].start - 2) <= 1
    assert found["beyond"].start == 12
    assert found["broken"].posterior.history == ()
    assert len(rounds) == 25 and all(len(questions) == 4 for questions in rounds)
    assert all(d <= 12 for questions in rounds for name, d in questions if name == "beyond")


def test_the_posterior_is_drawn():
    known = asked(7.3, 1.5, 8, 0, Settings(particles=128))
    figure = plot.posterior(known)
    (axes,) = figure.axes
    seen = axes.collections[-1].get_offsets()
    assert len(seen) == len({difficulty for difficulty, _, _ in known.history})
    assert "crossing at" in axes.get_title()
    curve = axes.lines[0].get_ydata()
    assert np.all(np.diff(curve) <= 1e-12) and curve[0] > 0.8 > 0.2 > curve[-1]
    plot.posterior(irt.start(Settings(particles=16), np.random.default_rng(0)))
