"""Trains a model of rewards from preference pairs, in a run directory like any other.

Batches are a function of seed and step; the state of a run is the trainer's. So a run that was
stopped goes on from its checkpoint as if it had not been.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zaya_jax import balance, load, lora, optim
from zaya_jax.config import Experiment
from zaya_jax.errors import UserError
from zaya_jax.infer.rsa.generator import Chat
from zaya_jax.rl.preference import pairs as data
from zaya_jax.rl.preference.pairs import Encoded, Pair
from zaya_jax.rl.preference.reward import PairLoss, pair_loss, rewards
from zaya_jax.train import interrupt, setup, start, telemetry, workdir
from zaya_jax.train import state as train_state
from zaya_jax.train.checkpoint import Checkpoints
from zaya_jax.train.gradient import for_compute
from zaya_jax.train.metrics import Writer
from zaya_jax.train.progress import Progress
from zaya_jax.train.state import TrainState

SCALE = "reward_scale.json"
"""In the run directory: mean and standard deviation of held-out rewards; see `judge`."""


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
      step: updates made.
      accuracy: held-out pairs in the right order, at the end.
      by_length: the same if the longer response (or the shorter one, if that is better) is taken.
      interrupted: the signal that left something undone, if one did.
    """

    folder: Path
    step: int
    accuracy: float | None
    by_length: float
    interrupted: signal.Signals | None


def run(experiment: Experiment, folder: Path | str, progress: Progress | None = None) -> Outcome:
    """Trains in a run directory, from where it stands to its last step.

    Raises:
      UserError: no pairs, or no `train.init_from`; what `read_pairs`, `workdir`, `start` and
        `Checkpoints` say; more than half of the pairs longer than `train.sequence_length`.
    """
    folder, progress = Path(folder), progress or Progress(experiment.train.steps)
    section = experiment.preference
    if not section.pairs:
        raise UserError("preference.pairs: name a file of pairs, see docs/rl.md")
    if experiment.train.init_from is None:
        raise UserError("train.init_from: a model of rewards starts from weights that can read")
    parts = data.divide(data.of(section.pairs), section.heldout_fraction)
    with ExitStack() as stack:
        workdir.open_run(experiment, folder, stack)
        workdir.record_environment(folder)
        checkpoints = stack.enter_context(closing(Checkpoints(folder, experiment)))
        stop = stack.enter_context(interrupt.requests())
        training = _Training(experiment, folder, checkpoints, progress, parts)
        stack.callback(training.writer.close)
        return training(stop)


class _Training:
    """One call of `run`, with everything at hand."""

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        checkpoints: Checkpoints,
        progress: Progress,
        parts: tuple[list[Pair], list[Pair]],
    ):
        self.experiment, self.folder, self.checkpoints = experiment, folder, checkpoints
        self.progress, self.cadence = progress, experiment.train
        loaded = load.load(self.cadence.init_from or "")
        setup.keep_tokenizer(experiment, loaded.require_tokenizer(), folder)
        self.chat = Chat(loaded)
        self.learnt, self.heldout = (self._encode(part) for part in parts)
        state = checkpoints.restore()
        self.state: TrainState = state or start.first_state(experiment, progress.say)
        if state is not None:
            progress.say(f"resuming {folder} at step {int(state.step):,}")
        self.writer = Writer(folder, int(self.state.step), experiment)
        self.update = make_update(experiment)
        self.score = jax.jit(
            lambda params, biases, tokens, lengths: rewards(
                experiment.model, for_compute(experiment.model, params), biases, tokens, lengths
            )[0]
        )

    def _encode(self, part: Sequence[Pair]) -> list[Encoded]:
        found = [
            Encoded(*(data.encode(self.chat, p.messages, text) for text in (p.chosen, p.rejected)))
            for p in part
        ]
        fits = [pair for pair in found if max(map(len, pair)) <= self.cadence.sequence_length]
        if 2 * len(fits) < len(found) or not fits:
            raise UserError(
                f"{len(found) - len(fits)} of {len(found)} pairs are longer than "
                f"train.sequence_length = {self.cadence.sequence_length}"
            )
        if len(fits) < len(found):
            self.progress.say(f"{len(found) - len(fits)} of {len(found)} pairs are too long")
        return fits

    def __call__(self, stop: interrupt.Request) -> Outcome:
        cadence, accuracy = self.cadence, None
        if int(self.state.step) == 0:
            accuracy = self._evaluate(0)
        while (step := int(self.state.step)) < cadence.steps and not stop:
            tokens, lengths = self._rows(self._batch(step))
            self.state, told = self.update(self.state, tokens, lengths)
            step += 1
            if step % cadence.log_every == 0 or step in (1, cadence.steps):
                record = jax.device_get(told)
                self.writer(step, record)
                self.progress.draw(
                    f"step {step}/{cadence.steps}  loss {record['loss']:.3f}  "
                    f"right {record['right']:.1%}"
                )
            if step % cadence.eval_every == 0 or step == cadence.steps:
                accuracy = self._evaluate(step)
            if step % cadence.checkpoint_every == 0 or step == cadence.steps or stop:
                self.checkpoints.save(self.state)
        self.checkpoints.wait()
        done = int(self.state.step) >= cadence.steps
        if done and accuracy is None:
            accuracy = self._evaluate(cadence.steps)
        interrupted = None if done else stop.signal
        by_length = length_baseline(self.heldout)
        return Outcome(self.folder, int(self.state.step), accuracy, by_length, interrupted)

    def _batch(self, step: int) -> list[Encoded]:
        """Batch `step`: epochs of all pairs, each in an order of its own."""
        size, count = self.cadence.batch_size, len(self.learnt)
        chosen = []
        for place in range(step * size, (step + 1) * size):
            epoch, i = divmod(place, count)
            order = np.random.default_rng((self.cadence.seed, epoch)).permutation(count)
            chosen.append(self.learnt[int(order[i])])
        return chosen

    def _rows(self, batch: Sequence[Encoded]) -> tuple[np.ndarray, np.ndarray]:
        sequences = [pair.chosen for pair in batch] + [pair.rejected for pair in batch]
        lengths = np.array([len(sequence) for sequence in sequences], np.int32)
        width = self.cadence.sequence_length
        return data.rows(sequences, width, self.experiment.model.pad_id), lengths

    def _evaluate(self, step: int) -> float:
        """Held-out pairs in the right order, and the scale of rewards."""
        size, margins, found = self.cadence.batch_size, [], []
        for begin in range(0, len(self.heldout), size):
            batch = self.heldout[begin : begin + size]
            tokens, lengths = self._rows([*batch, *batch[:1] * (size - len(batch))])
            scores = np.asarray(self.score(self.state.params, self.state.biases, tokens, lengths))
            chosen, rejected = scores[: len(batch)], scores[size : size + len(batch)]
            margins.append(chosen - rejected)
            found += [chosen, rejected]
        margin = np.concatenate(margins)
        accuracy = float((margin > 0).mean())
        every = np.concatenate(found)
        scale = {"mean": float(every.mean()), "std": float(every.std()) or 1.0}
        workdir.write_json(self.folder / SCALE, scale | {"step": step})
        self.writer(
            step,
            {
                "heldout_accuracy": accuracy,
                "heldout_loss": float(np.logaddexp(0, -margin).mean()),
                "heldout_by_length": length_baseline(self.heldout),
            },
        )
        self.progress.say(
            f"step {step:,}: {accuracy:.1%} of {len(self.heldout)} held-out pairs in the right "
            f"order; by length {length_baseline(self.heldout):.1%}"
        )
        return accuracy


def length_baseline(found: Sequence[Encoded]) -> float:
    """Pairs that length alone would order, longer or shorter first, whichever does better; a tie
    counts half."""
    longer = np.mean([np.sign(len(p.chosen) - len(p.rejected)) / 2 + 0.5 for p in found])
    return float(max(longer, 1 - longer))


def make_update(experiment: Experiment) -> Any:
    """The jitted `(state, tokens, lengths) -> (state, record)`; the state is donated."""
    model, declared = experiment.model, lora.trained(experiment)
    optimizer = train_state.optimizer(experiment)
    controller = train_state.controller(experiment)
    learning_rate = optim.schedule(experiment.optim, experiment.train.steps)

    def update(
        state: TrainState, tokens: jax.Array, lengths: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        def objective(params: Any) -> tuple[jax.Array, PairLoss]:
            told = pair_loss(model, params, state.biases, tokens, lengths)
            return told.loss, told

        gradients, told = jax.grad(objective, has_aux=True)(for_compute(model, state.params))
        gradients = jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, state.params)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.params)
        nudges, balance_state = controller.update(
            balance.errors(model, told.counts), state.balance, state.biases
        )
        moved = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            biases=optax.apply_updates(state.biases, nudges),
            optimizer=optimizer_state,
            balance=balance_state,
            faults=state.faults,
            cursor=state.cursor + 1,
        )
        record = {
            "loss": told.loss,
            "right": told.right,
            "margin": told.margin,
            "grad_norm": telemetry.total_norm(telemetry.norms(declared, gradients)),
            "learning_rate": learning_rate(jnp.asarray(state.step)),
        }
        return moved, record

    return jax.jit(update, donate_argnums=0)
