"""The loop: steps, evaluation, checkpoints, and every way in which a run may end."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zaya_jax.config import Experiment
from zaya_jax.data import Batch, Prepared
from zaya_jax.errors import UserError
from zaya_jax.model.functional import Biases, Params
from zaya_jax.train import interrupt, setup, workdir
from zaya_jax.train import metrics as metrics_lib
from zaya_jax.train.checkpoint import Checkpoints
from zaya_jax.train.metrics import Writer
from zaya_jax.train.progress import Progress, Rate, clock
from zaya_jax.train.state import TrainState
from zaya_jax.train.step import Metrics, make_eval_step, make_train_step


class Diverged(UserError):
    """The loss, the gradient or the weights are no numbers any more."""


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
      folder: the run directory.
      step: steps done.
      bits_per_byte: of the held-out text, by the step of the evaluation, as far as this call made
        them.
      seconds: wall time of compilation, steps and evaluations (not of the data), over all starts.
      interrupted: the signal that left something undone, if one did.
    """

    folder: Path
    step: int
    bits_per_byte: dict[int, float]
    seconds: float
    interrupted: signal.Signals | None


def train(experiment: Experiment, folder: Path | str, progress: Progress | None = None) -> Result:
    """Trains an experiment in a run directory, from where it stands there to its last step.

    Batches are a function of the step and checkpoints hold everything else, so a run that was
    stopped or killed ends, when it is started again, in the state it would have had anyway.

    Args:
      experiment: what to train.
      folder: the run directory; made if need be.
      progress: where to tell.

    Raises:
      UserError: as `workdir.lock`, `workdir.claim`, `setup.prepare_data`, `setup.first_state` and
        `Checkpoints.restore` say.
      Diverged: something became NaN or infinite; the checkpoints from before that stay.
    """
    with workdir.lock(Path(folder)):
        return _train(experiment, Path(folder), progress or Progress(experiment.train.steps))


def _train(experiment: Experiment, folder: Path, progress: Progress) -> Result:
    workdir.claim(experiment, folder)
    prepared = setup.prepare_data(experiment, folder)
    workdir.record_environment(folder)
    checkpoints = Checkpoints(folder, experiment)
    try:
        with interrupt.requests() as stop:
            progress.say(setup.describe(experiment, prepared))
            state = checkpoints.restore()
            if state is None:
                state = setup.first_state(experiment, progress.say)
            else:
                progress.say(f"resuming {folder} at step {int(state.step):,}")
            # Placed, as a restored state is: a resumed run finds its program in jax's cache.
            state = jax.device_put(state, jax.devices()[0])
            writer = Writer(folder, int(state.step))
            try:
                run = _Run(experiment, folder, prepared, checkpoints, writer, progress, stop)
                return run(state)
            finally:
                writer.close()
    finally:
        checkpoints.close()


class _Run:
    """One call of `train`, with everything at hand."""

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        prepared: Prepared,
        checkpoints: Checkpoints,
        writer: Writer,
        progress: Progress,
        stop: interrupt.Request,
    ):
        self.cadence = experiment.train
        self.experiment, self.folder, self.prepared = experiment, folder, prepared
        self.checkpoints, self.writer, self.progress = checkpoints, writer, progress
        self.stop = stop
        self.eval_step = make_eval_step(experiment.model)
        self.rate = Rate()
        self.bits_per_byte: dict[int, float] = {}
        self.evaluated = {record["step"] for record in metrics_lib.evaluations(folder)}

    def __call__(self, state: TrainState) -> Result:
        step = int(state.step)
        self.lap, self.lap_step = time.monotonic(), step
        if step < self.cadence.steps:
            take_step = self._compile(state)
        if self._due(step, self.cadence.eval_every):
            self._evaluate(state, step)
        # A step's numbers are read while the next one runs, so that reading never makes it wait.
        pending: deque[tuple[int, Metrics]] = deque()
        while step < self.cadence.steps and not self.stop:
            state, metrics = take_step(state, self.prepared.train.batch(step))
            step += 1
            pending.append((step, metrics))
            evaluating = self._due(step, self.cadence.eval_every)
            saving = self._due(step, self.cadence.checkpoint_every)
            while len(pending) > (0 if evaluating or saving else 1):
                self._read(*pending.popleft())
            if evaluating:
                self._evaluate(state, step)
            if saving:
                self._save(state)
        while pending:
            self._read(*pending.popleft())
        done = step >= self.cadence.steps and step in self.evaluated
        if self.stop.signal is not None and not done:
            self._save(state)
            self.progress.say(
                f"stopped by {self.stop.signal.name} after step {step:,}; everything is saved. To "
                f"go on: the same command again, with --workdir={self.folder}"
            )
        interrupted = None if done else self.stop.signal
        return Result(self.folder, step, self.bits_per_byte, self.writer.seconds, interrupted)

    def _due(self, step: int, every: int) -> bool:
        return step == self.cadence.steps or step % every == 0

    def _compile(self, state: TrainState) -> Callable[..., tuple[TrainState, Metrics]]:
        self.progress.say("compiling the training step ...")
        began = time.monotonic()
        step = make_train_step(self.experiment)
        compiled = step.lower(state, self.prepared.train.batch(0)).compile()
        self.progress.say(f"compiled in {time.monotonic() - began:.1f} s")
        self.lap = time.monotonic()
        return compiled

    def _read(self, step: int, metrics: Metrics) -> None:
        """Looks at the numbers of a step that was dispatched: writes, shows, or gives up."""
        loss, norm = float(metrics.loss), float(metrics.grad_norm)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise self._diverged(step, f"the loss is {loss} and the gradient's norm {norm}")
        if not metrics.finite:
            raise self._diverged(step, f"from a loss of {loss:.4g} to weights that are no numbers")
        logging = step % self.cadence.log_every == 0 or step in (1, self.cadence.steps)
        if not logging and not self.progress.due():
            return
        self._account(step)
        if logging:
            record = {name: np.asarray(value) for name, value in metrics._asdict().items()}
            del record["load"]  # on evaluation lines: a matrix a line would be most of the file
            del record["finite"]  # it is
            self.writer(step, {**record, "tokens_per_second": self.rate.value})
        if self.progress.due() or step == self.cadence.steps:
            tokens = self.cadence.batch_size * self.cadence.sequence_length
            left = (self.cadence.steps - step) * tokens / self.rate.value if self.rate.value else 0
            entropy = float(np.mean(metrics.load_entropy))
            self.progress.update(step, loss, entropy, self.rate.value, left)

    def _account(self, step: int) -> None:
        """Adds the time since the last lap to the rate."""
        now = time.monotonic()
        if step > self.lap_step:
            tokens = self.cadence.batch_size * self.cadence.sequence_length
            self.rate.add((step - self.lap_step) * tokens, now - self.lap)
        self.lap, self.lap_step = now, step

    def _evaluate(self, state: TrainState, step: int) -> None:
        """Scores the held-out text, unless that was done before or is asked to stop."""
        if step in self.evaluated:
            return
        began = time.monotonic()
        found = evaluate(self.eval_step, state.params, state.biases, self.prepared, self.stop)
        if found is None:
            return  # a part of the text has no score; the run makes up for it when it goes on
        nats, targets, load = found
        heldout = self.prepared.heldout
        bits = heldout.bits_per_byte(nats)
        if not math.isfinite(bits):
            raise self._diverged(step, f"the loss of the held-out text is {nats / targets}")
        self.bits_per_byte[step] = bits
        self.evaluated.add(step)
        self.writer(
            step,
            {
                "heldout_bits_per_byte": bits,
                "heldout_loss": nats / targets,
                "heldout_load": load,
                "biases": {name: np.asarray(value) for name, value in state.biases.items()},
            },
        )
        seconds = time.monotonic() - began
        self.progress.say(
            f"step {step:,}: held out {bits:.4f} bits per byte, {nats / targets:.4f} nats per "
            f"token ({heldout.target_bytes / 1e3:,.0f} kB in {clock(seconds)})"
        )
        self.lap += time.monotonic() - began

    def _save(self, state: TrainState) -> None:
        began = time.monotonic()
        self.checkpoints.save(state)
        self.lap += time.monotonic() - began

    def _diverged(self, step: int, what: str) -> Diverged:
        """The error, with a way on that works."""
        saved = self.checkpoints.newest()
        way = (
            f"go on from the last checkpoint's weights with --config.train.init_from={saved} and "
            "another --workdir"
            if saved
            else "nothing was saved yet, so the same --workdir takes another config"
        )
        return Diverged(
            f"step {step}: {what}. A lower optim.learning_rate, a longer optim.warmup_steps or a "
            f"smaller optim.clip_norm may help: {way}"
        )


def evaluate(
    step: Callable[[Params, Biases, Batch], tuple[jax.Array, jax.Array, jax.Array]],
    params: Params,
    biases: Biases,
    prepared: Prepared,
    stop: interrupt.Request | None = None,
) -> tuple[float, float, np.ndarray] | None:
    """Runs an evaluation step (`make_eval_step`) over the whole held-out text.

    Returns:
      Summed nats, number of targets, and the experts' loads [L, E] as shares; None if a request to
      stop came in between.
    """
    nats = targets = 0.0
    counts: Any = 0
    for batch in prepared.heldout.batches:
        if stop:
            return None
        some_nats, some_targets, some_counts = step(params, biases, batch)
        # Summed in double precision on the host: a long text adds up many small numbers.
        nats += float(some_nats)
        targets += float(some_targets)
        counts = counts + np.asarray(some_counts, np.int64)
    return nats, targets, counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
