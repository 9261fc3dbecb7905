"""The policy loss: published vectors, its gradient, and that packing changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.errors import UserError
from zaya_jax.rl.aggregation import seq_mean_token_sum
from zaya_jax.rl.dppo import binary_tv, binary_tv_mask
from zaya_jax.rl.loss import PolicyLoss, policy_loss

log = np.log


# The vectors of slime's own unit tests of DPPO (THUDM/slime: tests of `ppo_utils`, two versions).
def test_dppo_masks_the_published_vectors():
    mu, pi = np.array([0.1, 0.4, 0.5, 0.7]), np.array([0.35, 0.1, 0.9, 0.2])
    advantages = np.array([1.0, -1, 1, -1])
    kept = binary_tv_mask(log(pi), log(mu), advantages, low=0.2, high=0.28)
    assert np.asarray(~kept).tolist() == [False, True, True, True]

    mu = np.full(5, 0.2)
    pi = mu * np.array([2, 0.5, 0.5, 2, 1.1])
    kept = binary_tv_mask(log(pi), log(mu), np.array([1.0, 1, -1, -1, 1]), low=0.05, high=0.05)
    assert np.asarray(kept).tolist() == [False, True, False, True, True]
    tv = binary_tv(log([0.5, 0.6, 0.1]), log([0.2, 0.7, 0.4]))
    np.testing.assert_allclose(tv, [0.3, 0.1, 0.3], rtol=1e-5)


def test_dppo_masks_by_probability_where_ppo_masks_by_ratio():
    mu, pi = log(np.array([1e-4, 0.5])), log(np.array([5e-4, 0.65]))
    kept = np.asarray(binary_tv_mask(pi, mu, np.ones(2)))
    assert kept.tolist() == [True, False]  # ratios of 5 and 1.3


def test_the_symmetric_form_masks_whatever_is_outside():
    mu, pi = log(np.array([0.5, 0.5, 0.5])), log(np.array([0.7, 0.3, 0.55]))
    for sign in (1.0, -1.0):
        one = np.asarray(binary_tv_mask(pi, mu, np.full(3, sign)))
        both = np.asarray(binary_tv_mask(pi, mu, np.full(3, sign), symmetric=True))
        assert one.tolist() == [sign < 0, sign > 0, True] and both.tolist() == [False, False, True]


def test_on_the_border_a_token_is_inside():
    kept = binary_tv_mask(jnp.log(0.75), jnp.log(0.25), jnp.array([1.0]), low=0.5, high=0.5)
    moved = float(jnp.exp(jnp.log(0.75)) - jnp.exp(jnp.log(0.25)))
    assert bool(kept[0]) == (moved <= 0.5)


def batch(seed: int, tokens: int = 40):
    rng = np.random.default_rng(seed)
    logprob = -rng.exponential(1.0, tokens).astype(np.float32)
    mu = np.minimum(logprob + rng.normal(0, 0.5, tokens), -1e-4).astype(np.float32)
    advantages = rng.normal(size=tokens).astype(np.float32)
    weights = (rng.random(tokens) < 0.7).astype(np.float32)
    return logprob, mu, advantages, weights


@pytest.mark.parametrize(
    "settings",
    [
        PolicyLoss(),
        PolicyLoss(symmetric=True, low=0.2, high=0.3),
        PolicyLoss(trust_region=False, ratio_cap=1.2),
    ],
)
def test_the_loss_and_its_gradient_are_the_equation(settings):
    logprob, mu, advantages, weights = batch(0)
    (loss, sums), gradient = jax.value_and_grad(policy_loss, has_aux=True)(
        logprob, mu, advantages, weights, 7, settings
    )
    moved, ratio = np.exp(logprob) - np.exp(mu), np.exp(logprob - mu)
    out = ((moved > settings.high) & (settings.symmetric | (advantages > 0))) | (
        (moved < -settings.low) & (settings.symmetric | (advantages < 0))
    )
    kept = ~out if settings.trust_region else np.ones_like(out)
    factor = -kept * np.minimum(ratio, settings.ratio_cap) * advantages * weights / 7
    np.testing.assert_allclose(loss, np.sum(factor * logprob), rtol=1e-5)
    np.testing.assert_allclose(gradient, factor, rtol=1e-5, atol=1e-7)
    live = weights > 0
    assert sums.tokens == live.sum() and sums.masked == (live & ~kept).sum()
    assert sums.capped == (live & (ratio > settings.ratio_cap)).sum()
    np.testing.assert_allclose(sums.log_ratio, (logprob - mu)[live].sum(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sums.tv, np.abs(moved)[live].sum(), rtol=1e-4)
    np.testing.assert_allclose(sums.entropy, -logprob[live].sum(), rtol=1e-4)
    assert sums.kl >= 0


def test_parts_of_a_batch_add_up_to_the_whole():
    logprob, mu, advantages, weights = batch(1)
    whole, _ = policy_loss(logprob, mu, advantages, weights, 5, PolicyLoss())
    parts = [
        policy_loss(logprob[p], mu[p], advantages[p], weights[p], 5, PolicyLoss())[0]
        for p in (slice(0, 7), slice(7, 30), slice(30, None))
    ]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)


def test_padding_may_hold_anything_even_in_the_gradient():
    logprob, mu, advantages, weights = batch(2)
    padding = weights == 0
    clean = jax.grad(lambda x: policy_loss(x, mu, advantages, weights, 5, PolicyLoss())[0])(logprob)
    for bad in (np.nan, np.inf, -np.inf):
        dirty = np.where(padding, bad, logprob).astype(np.float32)
        dirty_mu = np.where(padding, bad, mu).astype(np.float32)
        dirty_a = np.where(padding, bad, advantages).astype(np.float32)
        loss, gradient = jax.value_and_grad(
            lambda x, m=dirty_mu, a=dirty_a: policy_loss(x, m, a, weights, 5, PolicyLoss())[0]
        )(dirty)
        assert np.isfinite(loss)
        np.testing.assert_array_equal(gradient, clean)


def test_extreme_ratios_stay_finite():
    loss, sums = policy_loss(
        jnp.array([-1e-6, -200.0]),
        jnp.array([-200.0, -1e-6]),
        jnp.array([1.0, -1.0]),
        jnp.ones(2),
        1,
        PolicyLoss(trust_region=False),
    )
    assert np.isfinite(loss) and all(np.isfinite(value) for value in sums)


@given(st.integers(0, 100), st.integers(1, 5))
def test_the_sum_over_tokens_has_no_length_in_it(seed, rollouts):
    """Twice as many equal tokens weigh twice as much; a norm and N only scale."""
    losses = np.random.default_rng(seed).normal(size=6).astype(np.float32)
    one = seq_mean_token_sum(losses, np.ones(6), rollouts)
    twice = seq_mean_token_sum(np.tile(losses, 2), np.ones(12), rollouts)
    np.testing.assert_allclose(twice, 2 * one, rtol=1e-5)
    np.testing.assert_allclose(
        seq_mean_token_sum(losses, np.ones(6), rollouts, norm=3.0), one / 3, rtol=1e-5
    )


@pytest.mark.parametrize("change", [{"low": -0.1}, {"high": 2}, {"ratio_cap": 0}, {"norm": 0}])
def test_settings_are_checked(change):
    with pytest.raises(UserError, match=next(iter(change))):
        PolicyLoss(**change)
