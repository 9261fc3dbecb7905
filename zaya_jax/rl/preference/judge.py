"""Rewards of responses by a model of preferences, as a stage of RL uses them (report IV-E).

    r = sigmoid((score - mean) / std)      of what passes its verifier
    r = 0                                  of what does not

The report normalises scores and gates them by binary checks of instructions; how it normalises, it
does not say. Mean and deviation are those of the held-out responses of the pairs. The sigmoid
(ours) keeps every passing response above every failing one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from zaya_jax import load
from zaya_jax.answers import final_text
from zaya_jax.errors import UserError
from zaya_jax.infer.rsa.generator import Chat
from zaya_jax.rl.preference import pairs
from zaya_jax.rl.preference.reward import rewards
from zaya_jax.rl.preference.train import SCALE
from zaya_jax.rl.rewards.interface import Submission
from zaya_jax.train import workdir

ROWS = 16
"""Responses that are scored at once."""


class RewardModel:
    """The last checkpoint of a run of `launch.py reward-model`."""

    def __init__(self, folder: Path | str):
        """Raises:
        UserError: no such run, or it has not finished.
        """
        folder = Path(folder)
        loaded = load.load(folder)
        try:
            scale = json.loads((folder / SCALE).read_text())
            self._mean, self._std = float(scale["mean"]), float(scale["std"])
            if scale["step"] != workdir.read_config(folder).train.steps:
                raise ValueError(f"it is of step {scale['step']}, and not of the last")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"rl.reward_model = {folder}: no {SCALE} there ({error}): it is no run of "
                "`launch.py reward-model`, or one that has not finished"
            ) from None
        self._chat, self._pad_id = Chat(loaded), loaded.model.pad_id
        self._length = workdir.read_config(folder).train.sequence_length
        self._score = jax.jit(
            lambda tokens, lengths: rewards(
                loaded.model, loaded.params, loaded.biases, tokens, lengths
            )[0]
        )

    def __call__(self, prompts: Sequence[str], submissions: Sequence[Submission]) -> np.ndarray:
        """[n] in (0, 1): of the final text of each response, its thinking left out; 0 for one that
        is longer than the model was trained on, or empty."""
        texts = [final_text(s.response, thinking=s.thinking).strip() for s in submissions]
        sequences = [
            pairs.encode(self._chat, ({"role": "user", "content": prompt},), text)
            for prompt, text in zip(prompts, texts, strict=True)
        ]
        found = np.zeros(len(sequences))
        fits = [i for i, s in enumerate(sequences) if len(s) <= self._length and texts[i]]
        for begin in range(0, len(fits), ROWS):
            some = fits[begin : begin + ROWS]
            chosen = [sequences[i] for i in some]
            chosen += chosen[:1] * (ROWS - len(some))
            lengths = np.array([len(sequence) for sequence in chosen], np.int32)
            scores = self._score(pairs.rows(chosen, self._length, self._pad_id), lengths)
            found[some] = np.asarray(scores, np.float64)[: len(some)]
            found[some] = 1 / (1 + np.exp(-(found[some] - self._mean) / self._std))
        return found
