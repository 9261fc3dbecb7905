"""The policy loss: published vectors, its gradient, and that packing changes nothing."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.errors import UserError
from zaya_jax.rl.aggregation import seq_mean_token_sum
from zaya_jax.rl.dppo import binary_tv, binary_tv_mask
from zaya_jax.rl.loss import PolicyLoss, policy_loss

log = np.log
TOKENS = 40
# One compilation for all tests of one setting: op by op, each shape would be compiled anew.
loss_and_gradient = jax.jit(
    jax.value_and_grad(policy_loss, has_aux=True), static_argnames="settings"
)
total = jax.jit(seq_mean_token_sum)
mask = jax.jit(binary_tv_mask, static_argnames=("low", "high", "symmetric"))


# The vectors of slime's own unit tests of DPPO (THUDM/slime: tests of `ppo_utils`, two versions).
def test_dppo_masks_the_published_vectors():
    mu, pi = np.array([0.1, 0.4, 0.5, 0.7]), np.array([0.35, 0.1, 0.9, 0.2])
    advantages = np.array([1.0, -1, 1, -1])
    kept = mask(log(pi), log(mu), advantages, low=0.2, high=0.28)
    assert np.asarray(~kept).tolist() == [False, True, True, True]

    mu = np.full(5, 0.2)
    pi = mu * np.array([2, 0.5, 0.5, 2, 1.1])
    kept = mask(log(pi), log(mu), np.array([1.0, 1, -1, -1, 1]), low=0.05, high=0.05)
    assert np.asarray(kept).tolist() == [False, True, False, True, True]
    tv = binary_tv(log([0.5, 0.6, 0.1]), log([0.2, 0.7, 0.4]))
    np.testing.assert_allclose(tv, [0.3, 0.1, 0.3], rtol=1e-5)


def test_dppo_masks_by_probability_where_ppo_masks_by_ratio():
    mu, pi = log(np.array([1e-4, 0.5])), log(np.array([5e-4, 0.65]))
    kept = np.asarray(mask(pi, mu, np.ones(2)))
    assert kept.tolist() == [True, False]  # ratios of 5 and 1.3


def test_the_symmetric_form_masks_whatever_is_outside():
    mu, pi = log(np.array([0.5, 0.5, 0.5])), log(np.array([0.7, 0.3, 0.55]))
    for sign in (1.0, -1.0):
        one = np.asarray(mask(pi, mu, np.full(3, sign)))
        both = np.asarray(mask(pi, mu, np.full(3, sign), symmetric=True))
        assert one.tolist() == [sign < 0, sign > 0, True] and both.tolist() == [False, False, True]


def test_on_the_border_a_token_is_inside():
    """exp(0) - exp(-inf) is 1 exactly."""
    border = np.float32([0.0]), np.float32([-np.inf]), np.float32([1.0])
    assert bool(mask(*border, high=1.0)[0]) and not bool(mask(*border, high=0.999)[0])


def batch(seed: int, tokens: int = TOKENS):
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
    (loss, sums), gradient = loss_and_gradient(logprob, mu, advantages, weights, 7, settings)
    moved, ratio = np.exp(logprob) - np.exp(mu), np.exp(logprob - mu)
    out = ((moved > settings.high) & (settings.symmetric | (advantages > 0))) | (
        (moved < -settings.low) & (settings.symmetric | (advantages < 0))
    )
    kept = ~out if settings.trust_region else np.ones_like(out)
    factor = -1.0 * kept * np.minimum(ratio, settings.ratio_cap) * advantages * weights / 7
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
    (whole, _), gradient = loss_and_gradient(logprob, mu, advantages, weights, 5, PolicyLoss())
    part = np.arange(TOKENS) % 3
    found = [
        loss_and_gradient(logprob, mu, advantages, weights * (part == i), 5, PolicyLoss())
        for i in range(3)
    ]
    np.testing.assert_allclose(sum(loss for (loss, _), _ in found), whole, rtol=1e-5)
    np.testing.assert_allclose(sum(g for _, g in found), gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_padding_may_hold_anything_even_in_the_gradient(bad):
    logprob, mu, advantages, weights = batch(2)
    clean = loss_and_gradient(logprob, mu, advantages, weights, 5, PolicyLoss())
    filled = [
        np.where(weights > 0, values, bad).astype(np.float32)
        for values in (logprob, mu, advantages)
    ]
    dirty = loss_and_gradient(*filled, weights, 5, PolicyLoss())
    assert np.isfinite(dirty[0][0])
    for ours, theirs in zip(jax.tree.leaves(clean), jax.tree.leaves(dirty), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_extreme_ratios_stay_finite():
    logprob = np.tile(np.float32([-1e-6, -200]), TOKENS // 2)
    mu, advantages = logprob[::-1].copy(), np.tile(np.float32([1, -1]), TOKENS // 2)
    (loss, sums), gradient = loss_and_gradient(
        logprob, mu, advantages, np.ones(TOKENS, np.float32), 1, PolicyLoss()
    )
    assert np.isfinite(loss) and np.isfinite(gradient).all()
    assert all(np.isfinite(value) for value in sums)


@given(st.integers(0, 100), st.integers(1, 5))
def test_the_sum_over_tokens_has_no_length_in_it(seed, rollouts):
    """Twice as many equal tokens weigh twice as much; a norm and N only scale."""
    losses = np.tile(np.random.default_rng(seed).normal(size=6).astype(np.float32), 2)
    half = np.repeat([1.0, 0.0], 6)
    one = total(losses, half, rollouts, 1.0)
    np.testing.assert_allclose(one, losses[:6].sum() / rollouts, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(total(losses, np.ones(12), rollouts, 1.0), 2 * one, rtol=1e-5)
    np.testing.assert_allclose(total(losses, half, rollouts, 3.0), one / 3, rtol=1e-5)


@pytest.mark.parametrize("change", [{"low": -0.1}, {"high": 2}, {"ratio_cap": 0}, {"norm": 0}])
def test_settings_are_checked(change):
    with pytest.raises(UserError, match=next(iter(change))):
        PolicyLoss(**change)
