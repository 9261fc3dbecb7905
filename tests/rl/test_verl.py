"""What verl computes on random batches (recorded by `record_verl.py`) is what we compute."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from zaya_jax.rl.advantages import grpo
from zaya_jax.rl.loss import PolicyLoss, policy_loss

RECORD = json.loads(Path(__file__).with_name("verl.json").read_text())


@pytest.mark.parametrize("case", RECORD["groups"], ids=lambda case: f"scale={case['scale']}")
def test_advantages_are_those_of_verl(case):
    ours = grpo(np.array(case["rewards"]), scale=case["scale"])
    np.testing.assert_allclose(ours, case["advantages"], atol=1e-5)


@pytest.mark.parametrize("case", RECORD["losses"], ids=lambda case: f"{case['mode']}-{case['cap']}")
def test_the_loss_is_that_of_verl(case):
    mask = np.array(case["mask"], np.float32)
    count, longest = mask.shape
    advantages = np.broadcast_to(np.array(case["advantages"], np.float32)[:, None], mask.shape)
    settings = PolicyLoss(
        low=case["low"],
        high=case["high"],
        ratio_cap=case["cap"],
        norm=longest if case["mode"].endswith("norm") else 1.0,
    )
    (loss, sums), gradient = jax.value_and_grad(policy_loss, has_aux=True)(
        np.array(case["new"], np.float32),
        np.array(case["old"], np.float32),
        advantages,
        mask,
        count,
        settings,
    )
    np.testing.assert_allclose(loss, case["loss"], rtol=1e-5)
    np.testing.assert_allclose(gradient, case["gradient"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(sums.masked / sums.tokens, case["masked"], rtol=1e-5)
