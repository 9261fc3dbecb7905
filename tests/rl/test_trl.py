"""One step of trl's GRPOTrainer, on a model of a few hundred weights: its advantages and the
gradient of its loss are ours."""

import hashlib

import numpy as np
import pytest

from tests.rl.make_trainer import recorded_step
from zaya_jax.rl.advantages import grpo
from zaya_jax.rl.loss import PolicyLoss, policy_loss

pytest.importorskip("trl")

GROUP = 4


def reward(completions, **_):
    """0, 1, or None, which is trl's word for a verifier that failed."""
    digests = [hashlib.sha256(text.encode()).digest()[0] for text in completions]
    return [None if value % 7 == 0 else float(value % 2) for value in digests]


@pytest.fixture(scope="module", params=["cispo", "luspo", "dr_grpo"])
def step(request, tmp_path_factory):
    """The second update on the same rollouts, so that the policy has moved on."""
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, recorded_step(folder, reward, loss_type=request.param, group=GROUP)


def test_advantages_are_those_of_trl(step):
    _, record = step
    rewards = record.rewards.reshape(-1, GROUP)
    ours = grpo(rewards, epsilon=1e-4).reshape(-1)
    assert np.isnan(rewards).any() and np.nanstd(rewards) > 0
    np.testing.assert_allclose(ours, record.scored, atol=1e-5)


def test_the_loss_is_that_of_trl(step):
    import jax

    kind, record = step
    count = len(record.mask)
    assert 0 < record.mask.mean() < 1
    spread = np.broadcast_to(record.advantages[:, None], record.mask.shape)
    settings = PolicyLoss(trust_region=False, ratio_cap=np.inf)

    def ours(logprob):
        return policy_loss(logprob, record.old, spread, record.mask, count, settings)[0]

    value, gradient = jax.value_and_grad(ours)(record.logprob)
    if kind == "dr_grpo":  # trl divides by the longest completion that the config allows
        gradient = gradient / record.max_completion_length
    if kind == "cispo":  # and here by the number of tokens
        scale = count / record.mask.sum()
        value, gradient = value * scale, gradient * scale
        np.testing.assert_allclose(value, record.loss, rtol=1e-4, atol=1e-6)
    assert np.abs(record.logprob - record.old).max() > 1e-3
    np.testing.assert_allclose(gradient, record.gradient, rtol=1e-4, atol=1e-6)
