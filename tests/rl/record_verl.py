"""Writes verl.json: what verl computes on random batches, for `test_verl`.

verl asks for a transformers older than the one that holds Zaya, so it gets an environment of its
own, and the tests read what it said there:

    python -m venv .venv-verl
    .venv-verl/bin/pip install verl==0.9.1 torch numpy tensordict
    .venv-verl/bin/python tests/rl/record_verl.py
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo import core_algos

OUT = Path(__file__).with_name("verl.json")
GROUPS, SIZE, TOKENS = 3, 4, 7


def groups(rng: np.random.Generator, scale: bool, binary: bool) -> dict:
    """GRPO's advantages of outcome rewards."""
    count = GROUPS * SIZE
    rewards = rng.integers(0, 2, count) if binary else rng.normal(size=count)
    token_rewards = torch.zeros(count, TOKENS)
    token_rewards[:, -1] = torch.tensor(rewards, dtype=torch.float32)
    advantages, _ = core_algos.compute_grpo_outcome_advantage(
        token_level_rewards=token_rewards,
        response_mask=torch.ones(count, TOKENS),
        index=np.repeat(np.arange(GROUPS), SIZE),
        norm_adv_by_std_in_grpo=scale,
    )
    return {
        "rewards": token_rewards[:, -1].reshape(GROUPS, SIZE).tolist(),
        "scale": scale,
        "advantages": advantages[:, 0].reshape(GROUPS, SIZE).tolist(),
    }


def losses(rng: np.random.Generator, low: float, high: float, cap: float, mode: str) -> dict:
    """DPPO Binary-TV: the loss, its gradient, and which share of tokens it masks."""
    shape = (5, TOKENS)
    old = torch.tensor(-rng.exponential(1.0, shape), dtype=torch.float32)
    new = torch.tensor(np.minimum(old.numpy() + rng.normal(0, 0.7, shape), -1e-4)).float()
    new.requires_grad_(True)
    advantages = torch.tensor(rng.normal(size=(5, 1)), dtype=torch.float32).expand(shape)
    mask = torch.tensor(rng.random(shape) < 0.8, dtype=torch.float32)
    mask[:, 0] = 1
    config = OmegaConf.create(
        {
            "clip_ratio": low,
            "clip_ratio_low": low,
            "clip_ratio_high": high,
            "clip_ratio_c": cap,
            "global_batch_info": {},
        }
    )
    loss, metrics = core_algos.compute_policy_loss_dppo_tv(
        old_log_prob=old,
        log_prob=new,
        advantages=advantages,
        response_mask=mask,
        loss_agg_mode=mode,
        config=config,
    )
    loss.backward()
    return {
        "low": low, "high": high, "cap": cap, "mode": mode,
        "old": old.tolist(), "new": new.detach().tolist(),
        "advantages": advantages[:, 0].tolist(), "mask": mask.tolist(),
        "loss": loss.item(), "gradient": new.grad.tolist(),
        "masked": float(metrics["actor/pg_clipfrac"]),
    }  # fmt: skip


def main() -> None:
    rng = np.random.default_rng(0)
    record = {
        "verl": importlib.metadata.version("verl"),
        "torch": torch.__version__,
        "groups": [groups(rng, s, b) for s in (True, False) for b in (True, False)],
        "losses": [
            losses(rng, low, high, cap, mode)
            for low, high, cap in ((0.1, 0.1, 20.0), (0.2, 0.28, 1.5))
            for mode in ("seq-mean-token-sum", "seq-mean-token-sum-norm")
        ],
    }
    OUT.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
