"""Rollouts to test with."""

import numpy as np

from zaya_jax.rl.rollout import Rollout


def rollout(seed: int, *, versions=0, routes=False, layers=3, prompt=None, tokens=None) -> Rollout:
    """Of random length, or as long as `versions` is; routes of 4 experts."""
    rng = np.random.default_rng(seed)
    tokens = tokens or (len(versions) if np.ndim(versions) else int(rng.integers(1, 9)))
    prompt = prompt or int(rng.integers(1, 6))
    return Rollout(
        prompt=rng.integers(1, 50, prompt).astype(np.int32),
        completion=rng.integers(1, 50, tokens).astype(np.int32),
        logprobs=-rng.random(tokens, np.float32),
        versions=np.broadcast_to(np.int32(versions), tokens).copy(),
        finish="length" if seed % 2 else "eos",
        routes=rng.integers(0, 4, (prompt + tokens - 1, layers)).astype(np.uint8)
        if routes
        else None,
    )
