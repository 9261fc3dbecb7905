"""Scoring a network on the held-out text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from zaya_jax.data import Batch, Prepared
from zaya_jax.model.functional import Biases, Params
from zaya_jax.parallel import ONE_DEVICE, OneDevice
from zaya_jax.train import interrupt


def evaluate(
    step: Callable[[Params, Biases, Batch], tuple[jax.Array, jax.Array, jax.Array]],
    params: Params,
    biases: Biases,
    prepared: Prepared,
    stop: interrupt.Request | None = None,
    layout: OneDevice = ONE_DEVICE,
) -> tuple[float, float, np.ndarray] | None:
    """Runs an evaluation step (`make_eval_step`) over the whole held-out text.

    Returns:
      Summed nats, number of targets, and the experts' loads [L, E] as shares; None if a request to
      stop came in between.
    """
    nats = targets = 0.0
    counts: Any = 0
    batches = prepared.heldout.batches
    for number in range(len(batches)):
        if stop:
            return None
        batch = layout.load(batches, number)
        some_nats, some_targets, some_counts = step(params, biases, batch)
        # Summed in double precision on the host: a long text adds up many small numbers.
        nats += float(some_nats)
        targets += float(some_targets)
        counts = counts + np.asarray(some_counts, np.int64)
    return nats, targets, counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
