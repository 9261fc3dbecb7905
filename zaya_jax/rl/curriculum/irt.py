"""Where does a policy begin to fail? A posterior over logistic students, by Thompson sampling.

A policy is taken for a student of item response theory: it solves a task of difficulty d with
probability p(d) = 1 / (1 + exp((d - mu) / s)) (equation 12). mu is where it solves half, s how
sharply that changes. What is known of (mu, s) is a population of particles with weights. A round
asks at the difficulty where one drawn particle expects a target rate (equation 13): for the target
1/2, where its Fisher information p (1 - p) / s^2 is greatest. Then all particles are weighed by how
likely they made the outcome (equation 14).

The report resamples when few particles carry the weight, with a history whose older outcomes count
less. Here the new particles are drawn around the old ones and weighed by prior * likelihood of that
history / density that they were drawn from: importance sampling, so no outcome counts twice, and no
particle is there twice. s is kept positive by its logarithm.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import expit, logsumexp

from zaya_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a crossing point is looked for. The report gives the target and its range only.

    Attributes:
      mean: of the prior's mu, a difficulty.
      spread: standard deviation of the prior's mu.
      sharpness: median of the prior's s.
      sharpness_spread: standard deviation of the prior's log s.
      particles: M.
      target: the rate of success that is looked for.
      explore: share of rounds (epsilon) that ask for another rate instead.
      explore_width: the rate is then uniform in target +- this.
      resample_below: resample when the effective number of particles is below this share of M.
      decay: what an outcome counts for, relative to the one after it.
    """

    mean: float = 5.0
    spread: float = 5.0
    sharpness: float = 1.0
    sharpness_spread: float = 0.75
    particles: int = 1024
    target: float = 0.5
    explore: float = 0.1
    explore_width: float = 0.25
    resample_below: float = 0.5
    decay: float = 0.98

    def __post_init__(self):
        for name in ("spread", "sharpness", "sharpness_spread"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.particles < 2:
            raise UserError(f"particles is {self.particles}; it must be at least 2")
        if not 0 < self.target - self.explore_width <= self.target + self.explore_width < 1:
            raise UserError(
                f"target {self.target} +- {self.explore_width} must lie between 0 and 1"
            )
        for name in ("explore", "resample_below"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        if not 0 < self.decay <= 1:
            raise UserError(f"decay is {self.decay}; it must be above 0 and at most 1")


@dataclasses.dataclass(frozen=True, eq=False)
class Posterior:
    """What is known of a policy in one environment.

    Attributes:
      mu: [M] float64, difficulty of rate 1/2.
      log_s: [M] float64.
      log_weights: [M] float64; their exponentials sum to 1.
      history: (difficulty, successes, tries) of every round so far.
      resampled: how often the population was drawn anew.
    """

    mu: np.ndarray
    log_s: np.ndarray
    log_weights: np.ndarray
    history: tuple[tuple[float, int, int], ...] = ()
    resampled: int = 0

    def state(self) -> dict[str, Any]:
        """As plain data, exactly."""
        return {
            "mu": self.mu.tolist(),
            "log_s": self.log_s.tolist(),
            "log_weights": self.log_weights.tolist(),
            "history": [list(entry) for entry in self.history],
            "resampled": self.resampled,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Posterior:
        """What `state` gave."""
        arrays = [np.asarray(state[name], np.float64) for name in ("mu", "log_s", "log_weights")]
        return cls(
            mu=arrays[0],
            log_s=arrays[1],
            log_weights=arrays[2],
            history=tuple((float(d), int(k), int(n)) for d, k, n in state["history"]),
            resampled=int(state["resampled"]),
        )


def start(settings: Settings, generator: np.random.Generator) -> Posterior:
    """The prior: mu Gaussian, s log-normal."""
    m = settings.particles
    return Posterior(
        mu=generator.normal(settings.mean, settings.spread, m),
        log_s=generator.normal(math.log(settings.sharpness), settings.sharpness_spread, m),
        log_weights=np.full(m, -math.log(m)),
    )


def rate(difficulty: float | np.ndarray, mu: np.ndarray, log_s: np.ndarray) -> np.ndarray:
    """p(d) of each student: equation 12."""
    return expit((mu - difficulty) * np.exp(-log_s))


def propose(posterior: Posterior, settings: Settings, generator: np.random.Generator) -> float:
    """Where to ask next: equation 13, for a particle drawn by its weight."""
    particle = generator.choice(len(posterior.mu), p=_weights(posterior))
    target = settings.target
    if generator.random() < settings.explore:
        target += generator.uniform(-settings.explore_width, settings.explore_width)
    s = math.exp(posterior.log_s[particle])
    return float(posterior.mu[particle] + s * math.log((1 - target) / target))


def observe(
    posterior: Posterior,
    difficulty: float,
    successes: int,
    tries: int,
    settings: Settings,
    generator: np.random.Generator,
) -> Posterior:
    """What is known after a round: equation 14, then new particles if too few carry the weight.

    Args:
      posterior: before it.
      difficulty: that was asked at.
      successes: k.
      tries: G.
      settings: of the search.
      generator: of new particles.

    Raises:
      ValueError: k is not from 0 to G, G is 0, or the difficulty is not finite.
    """
    if not (0 <= successes <= tries and tries > 0 and math.isfinite(difficulty)):
        raise ValueError(f"{successes} of {tries} at difficulty {difficulty} is no outcome")
    history = (*posterior.history, (float(difficulty), int(successes), int(tries)))
    weights = posterior.log_weights + _log_likelihood(
        posterior.mu, posterior.log_s, difficulty, successes, tries - successes
    )
    posterior = dataclasses.replace(
        posterior, log_weights=weights - logsumexp(weights), history=history
    )
    if effective_particles(posterior) < settings.resample_below * len(posterior.mu):
        return _resample(posterior, settings, generator)
    return posterior


def effective_particles(posterior: Posterior) -> float:
    """1 / sum of squared weights."""
    return float(np.exp(-logsumexp(2 * posterior.log_weights)))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A summary of a posterior.

    Attributes:
      mu: its mean: the difficulty of rate 1/2.
      low: its 5% quantile.
      high: its 95% quantile.
      s: mean of s.
    """

    mu: float
    low: float
    high: float
    s: float


def estimate(posterior: Posterior) -> Estimate:
    """What the particles say together."""
    weights = _weights(posterior)
    order = np.argsort(posterior.mu)
    cumulative = np.cumsum(weights[order])
    low, high = (
        float(posterior.mu[order][min(int(np.searchsorted(cumulative, q)), len(order) - 1)])
        for q in (0.05, 0.95)
    )
    s = float(weights @ np.exp(posterior.log_s))
    return Estimate(mu=float(weights @ posterior.mu), low=low, high=high, s=s)


def expected_rate(posterior: Posterior, difficulty: np.ndarray) -> np.ndarray:
    """[n], p(d) averaged over the posterior, for difficulties [n]."""
    rates = rate(np.asarray(difficulty)[:, None], posterior.mu, posterior.log_s)
    return rates @ _weights(posterior)


def _resample(
    posterior: Posterior, settings: Settings, generator: np.random.Generator
) -> Posterior:
    """New particles around the old ones, weighed for a history whose old outcomes count less."""
    m = len(posterior.mu)
    old = np.stack([posterior.mu, posterior.log_s], axis=1)  # [M, 2]
    weights = _weights(posterior)
    mean = weights @ old
    covariance = (weights[:, None] * (old - mean)).T @ (old - mean)
    # Silverman's width for two dimensions, by the particles that count; never quite zero
    width = max(effective_particles(posterior), 2.0) ** (-1 / 6)
    root = width * np.linalg.cholesky(covariance + 1e-8 * np.eye(2))
    drawn = old[generator.choice(m, m, p=weights)] + generator.standard_normal((m, 2)) @ root.T
    target = _log_prior(drawn, settings)
    for age, (difficulty, successes, tries) in enumerate(reversed(posterior.history)):
        counts = settings.decay**age
        target += counts * _log_likelihood(
            drawn[:, 0], drawn[:, 1], difficulty, successes, tries - successes
        )
    log_weights = target - _log_density(drawn, old, weights, root)
    return dataclasses.replace(
        posterior,
        mu=drawn[:, 0],
        log_s=drawn[:, 1],
        log_weights=log_weights - logsumexp(log_weights),
        resampled=posterior.resampled + 1,
    )


def _log_density(
    points: np.ndarray, centres: np.ndarray, weights: np.ndarray, root: np.ndarray
) -> np.ndarray:
    """Log density, up to a constant, of the mixture that the points were drawn from."""
    inverse = np.linalg.inv(root)
    a, b = points @ inverse.T, centres @ inverse.T
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
    return np.log(np.exp(-squares / 2) @ weights)  # above 0: each point is near its own centre


def _log_prior(points: np.ndarray, settings: Settings) -> np.ndarray:
    mu = (points[:, 0] - settings.mean) / settings.spread
    log_s = (points[:, 1] - math.log(settings.sharpness)) / settings.sharpness_spread
    return -(mu**2 + log_s**2) / 2


def _log_likelihood(
    mu: np.ndarray, log_s: np.ndarray, difficulty: float, successes: float, failures: float
) -> np.ndarray:
    """Of a binomial outcome, up to a constant."""
    x = (mu - difficulty) * np.exp(-log_s)
    return -successes * np.logaddexp(0, -x) - failures * np.logaddexp(0, x)


def _weights(posterior: Posterior) -> np.ndarray:
    weights = np.exp(posterior.log_weights)
    return weights / weights.sum()
