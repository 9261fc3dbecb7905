import numpy as np
import pytest

from zaya_jax.rl.agreement import agreement


def test_equal_policies_agree_and_noise_shows_in_order():
    rng = np.random.default_rng(0)
    logprob = -rng.exponential(1.0, (40, 50))
    found = [
        agreement(logprob + noise * rng.normal(size=logprob.shape), logprob, np.ones((40, 50)))
        for noise in (0, 1e-3, 1e-2, 1e-1)
    ]
    assert found[0] == (2000, 0, pytest.approx(1), 0)
    assert [a.kl for a in found] == sorted(a.kl for a in found)
    assert [a.pearson for a in found[1:]] == sorted((a.pearson for a in found[1:]), reverse=True)
    assert found[3].kl == pytest.approx(0.1**2 / 2, rel=0.1)  # KL of a small change


def test_only_tokens_of_responses_are_compared():
    weights = np.array([1, 0, 1])
    found = agreement(np.array([-1, np.nan, -2]), np.array([-1, 5, -2.5]), weights)
    assert found.tokens == 2 and found.largest == 0.5
    assert agreement([-1.0], [-1.0], [1]).pearson == 1
    assert agreement([-1.0, -1.0], [-1.0, -2.0], [1, 1]).pearson == 0
    with pytest.raises(ValueError, match="no token"):
        agreement([-1.0], [-1.0], [0])
