"""The loop: steps, evaluation, checkpoints, and every way in which a run may end."""

from __future__ import annotations

import dataclasses
import functools
import math
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zaya_jax import costs, lora
from zaya_jax.config import Experiment
from zaya_jax.data import Prepared
from zaya_jax.errors import UserError
from zaya_jax.model.functional import Biases, Params
from zaya_jax.parallel import OneDevice
from zaya_jax.parallel import layout as layout_of
from zaya_jax.parallel.processes import ALONE, Alone
from zaya_jax.train import agree, faults, interrupt, setup, start, throughput, workdir
from zaya_jax.train import metrics as metrics_lib
from zaya_jax.train.checkpoint import Checkpoints
from zaya_jax.train.evaluate import evaluate
from zaya_jax.train.feed import Feed
from zaya_jax.train.metrics import Unwritten, Writer
from zaya_jax.train.progress import Progress, Silent, clock
from zaya_jax.train.state import TrainState
from zaya_jax.train.step import make_eval_step, make_train_step, rates
from zaya_jax.train.telemetry import UNWRITTEN, Metrics


class Diverged(UserError):
    """No more steps can be taken: their loss, gradient or updates are no numbers, or spikes."""


class _TooManyRefused(Exception):
    """As many steps in a row were refused as may be; carries the last one's numbers."""

    def __init__(self, metrics: Metrics):
        super().__init__()
        self.metrics = metrics


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


def train(
    experiment: Experiment,
    folder: Path | str,
    progress: Progress | None = None,
    group: Alone = ALONE,
) -> Result:
    """Trains an experiment in a run directory, from where it stands there to its last step.

    Batches are a function of the cursor and checkpoints hold everything else, so a run that was
    stopped or killed ends, when it is started again, in the state it would have had anyway.

    Args:
      experiment: what to train.
      folder: the run directory; made if need be.
      progress: where to tell.
      group: the processes of the run, each of which makes this call; process 0 alone writes and
        tells.

    Raises:
      UserError: as `agree.check`, `zaya_jax.parallel.layout`, `workdir.lock`, `workdir.claim`,
        `setup.prepare_data`, `start.first_state`, `start.load_base`, `metrics.Writer` and
        `Checkpoints` say.
      Diverged: steps were refused time and again; the checkpoints from before that stay.
    """
    folder = Path(folder)
    if progress is None:
        progress = Progress(experiment.train.steps) if group.leads else Silent()
    agree.check(group, experiment)
    layout = layout_of(experiment)
    with ExitStack() as stack:
        group.share(lambda: workdir.open_run(experiment, folder, stack))
        agree.check_folder(group, folder)
        prepared = setup.prepare_data(experiment, folder, group)
        group.share(lambda: workdir.record_environment(folder))
        checkpoints = stack.enter_context(closing(Checkpoints(folder, experiment, layout, group)))
        stop = stack.enter_context(interrupt.requests(group))
        compiled = stack.enter_context(throughput.compilations())
        progress.say("\n".join([setup.describe(experiment, prepared), *layout.describe()]))
        run = _Run(
            experiment, folder, layout, group, prepared, checkpoints, progress, stop, compiled
        )
        stack.callback(run.close)
        with group.guard():
            return run()


class _Run:
    """One call of `train`, with everything at hand."""

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        layout: OneDevice,
        group: Alone,
        prepared: Prepared,
        checkpoints: Checkpoints,
        progress: Progress,
        stop: interrupt.Request,
        compiled: throughput.Compilations,
    ):
        self.cadence, self.layout, self.group = experiment.train, layout, group
        self.experiment, self.folder, self.prepared = experiment, folder, prepared
        self.checkpoints, self.progress = checkpoints, progress
        self.stop, self.compiled = stop, compiled
        self.bits_per_byte: dict[int, float] = {}
        self.base: start.Weights | None = None
        if experiment.lora.rank:
            self.base = start.load_base(experiment, folder, progress.say, group)
        state = checkpoints.restore()
        if state is None:
            state = start.first_state(experiment, progress.say, self.base, layout)
        else:
            progress.say(f"resuming {folder} at step {int(state.step):,}")
        self._begin(state)
        self.frozen: Params = {} if self.base is None else layout.place_frozen(self.base.params)
        self.rates = rates(experiment)
        self.eval_step: Any = make_eval_step(experiment.model, layout)
        # Jitted: its loops over stacks would else be compiled anew at every evaluation.
        self.merge = jax.jit(functools.partial(lora.merge, experiment.model, experiment.lora))
        self.feed = Feed(prepared.train, layout)
        self.rate = throughput.Rate()
        self.peak = throughput.peak_flops(experiment, jax.local_devices()[0])

    def _begin(self, state: TrainState) -> None:
        """Takes up the run at a state: from here on its records are written."""
        # Placed, as a restored state is: a resumed run finds its program in jax's cache.
        self.state = self.layout.place(state)
        step, writer = int(state.step), Writer if self.group.leads else Unwritten
        self.writer = writer(self.folder, step, self.experiment)
        self.bits_per_byte = {
            done: bits for done, bits in self.bits_per_byte.items() if done <= step
        }
        there = self.group.share(
            lambda: [record["step"] for record in metrics_lib.evaluations(self.folder)]
        )
        self.evaluated = set(there)

    def close(self) -> None:
        """Ends what runs beside."""
        self.feed.close()
        self.writer.close()

    def __call__(self) -> Result:
        take_step = self._compile() if int(self.state.step) < self.cadence.steps else None
        while True:
            try:
                step = self._course(take_step)
                break
            except _TooManyRefused as refused:
                self._roll_back(refused.metrics)
        done = step >= self.cadence.steps and step in self.evaluated
        if self.stop.signal is not None and not done:
            self._save()
            self.checkpoints.wait()
            self.progress.say(
                f"stopped by {self.stop.signal.name} after step {step:,}; everything is saved. To "
                f"go on: the same command again, with --workdir={self.folder}"
            )
        self.checkpoints.wait()
        interrupted = None if done else self.stop.signal
        return Result(self.folder, step, self.bits_per_byte, self.writer.seconds, interrupted)

    def _course(self, take_step: Callable[..., tuple[TrainState, Metrics]] | None) -> int:
        """From where the run stands to its end, or to a request to stop; the step it came to.

        Raises:
          _TooManyRefused: the steps lead nowhere.
        """
        step, cursor = int(self.state.step), int(self.state.cursor)
        self.lap, self.lap_step, self.lap_waited = time.monotonic(), step, self.feed.waited
        if self._due(step, self.cadence.eval_every):
            self._evaluate(step)
        # A step's numbers are read while the next one runs, so that reading never makes it wait.
        pending: deque[tuple[int, Metrics]] = deque()
        while step < self.cadence.steps and not self.stop:
            assert take_step is not None
            self.state, metrics = take_step(self.state, self.frozen, self.feed(cursor), self.rates)
            step, cursor = step + 1, cursor + 1
            pending.append((step, metrics))
            evaluating = self._due(step, self.cadence.eval_every)
            saving = self._due(step, self.cadence.checkpoint_every)
            while len(pending) > (0 if evaluating or saving else 1):
                self._read(*pending.popleft())
            if evaluating:
                self._evaluate(step)
            if saving:
                self._save()
            self.checkpoints.raise_failure()
        while pending:
            self._read(*pending.popleft())
        return step

    def _due(self, step: int, every: int) -> bool:
        return step == self.cadence.steps or step % every == 0

    def _compile(self) -> Callable[..., tuple[TrainState, Metrics]]:
        self.progress.say("compiling the training step ...")
        began = time.monotonic()
        step = make_train_step(self.experiment, self.layout)
        batch = self.feed(int(self.state.cursor))
        compiled = step.lower(self.state, self.frozen, batch, self.rates).compile()
        self.group.gather("", "compiled")
        self.progress.say(f"compiled in {time.monotonic() - began:.1f} s")
        return compiled

    def _compile_evaluation(self, params: Params, biases: Biases) -> None:
        """Compiles what the first evaluation would. Processes do that at different speeds, and the
        first collective of a program waits for the slower ones no longer than half a minute."""
        if self.group.count > 1 and not isinstance(self.eval_step, jax.stages.Compiled):
            batch = self.layout.load(self.prepared.heldout.batches, 0)
            self.eval_step = self.eval_step.lower(params, biases, batch).compile()
            self.group.gather("", "compiled")

    def _read(self, step: int, metrics: Metrics) -> None:
        """Looks at the numbers of a step that was dispatched: writes, shows, or gives up.

        Raises:
          _TooManyRefused: it was one refused step too many.
        """
        logging = step % self.cadence.log_every == 0 or step in (1, self.cadence.steps)
        if not metrics.accepted:
            logging = True
            self.progress.say(
                f"step {step:,}: not taken: loss {metrics.loss:.4g}, gradient norm "
                f"{metrics.grad_norm:.4g}"
            )
        if logging or self.progress.due():
            self._account(step)
        if logging:
            self.writer(step, self._record(metrics))
        if self.progress.due() or step == self.cadence.steps:
            tokens = self.cadence.batch_size * self.cadence.sequence_length
            left = (self.cadence.steps - step) * tokens / self.rate.value if self.rate.value else 0
            entropy = float(np.mean(metrics.load_entropy))
            self.progress.update(step, float(metrics.loss), entropy, self.rate.value, left)
        if metrics.in_a_row >= self.experiment.faults.limit:
            raise _TooManyRefused(metrics)

    def _record(self, metrics: Metrics) -> dict[str, Any]:
        """A training line: what the step says, and how the machine does."""
        record: dict[str, Any] = {
            name: jax.tree.map(np.asarray, value)
            for name, value in metrics._asdict().items()
            if name not in UNWRITTEN
        }
        if self.cadence.log_loads:
            record["load"] = np.asarray(metrics.load, np.float64).round(6)
        record |= {
            "tokens_per_second": self.rate.value,
            "data_wait": self.rate.waiting,
            "peak_memory_bytes": throughput.peak_memory_bytes(jax.local_devices()[0]),
            "compilations": self.compiled.count,
            "compile_seconds": self.compiled.seconds,
        }
        if self.peak is not None:
            used = costs.flops_per_token(self.experiment) * self.rate.value
            record["mfu"] = used / (self.peak * self.layout.devices)
        return record

    def _account(self, step: int) -> None:
        """Adds the time since the last lap to the rate."""
        now, waited = time.monotonic(), self.feed.waited
        if step > self.lap_step:
            tokens = self.cadence.batch_size * self.cadence.sequence_length
            self.rate.add((step - self.lap_step) * tokens, now - self.lap, waited - self.lap_waited)
        self.lap, self.lap_step, self.lap_waited = now, step, waited

    def _evaluate(self, step: int) -> None:
        """Scores the held-out text, unless that was done before or is asked to stop."""
        if step in self.evaluated:
            return
        began = time.monotonic()
        params, biases = self.state.params, self.state.biases
        if self.base is not None:
            params = self.merge(self.frozen, params)
        self._compile_evaluation(params, biases)
        found = evaluate(self.eval_step, params, biases, self.prepared, self.stop, self.layout)
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
                "biases": {name: np.asarray(value) for name, value in biases.items()},
            },
        )
        seconds = time.monotonic() - began
        self.progress.say(
            f"step {step:,}: held out {bits:.4f} bits per byte, {nats / targets:.4f} nats per "
            f"token ({heldout.target_bytes / 1e3:,.0f} kB in {clock(seconds)})"
        )
        self.lap += time.monotonic() - began

    def _save(self) -> None:
        began = time.monotonic()
        self.checkpoints.save(self.state)
        self.lap += time.monotonic() - began

    def _roll_back(self, refused: Metrics) -> None:
        """Goes back to the last scheduled checkpoint, and past the batches that came after it.

        Both depend on nothing but the refused step, so a run that was killed in between, and does
        its last steps again, comes to the same.

        Raises:
          Diverged: it went back as often as it may.
        """
        section, cursor = self.experiment.faults, int(refused.cursor)
        if int(refused.rollbacks) >= section.rollbacks:
            raise self._diverged(
                int(self.state.step),
                f"{section.limit} steps in a row were not taken, after {section.rollbacks} "
                f"rollbacks; the last had a loss of {refused.loss:.4g} and a gradient norm of "
                f"{refused.grad_norm:.4g}",
            )
        del self.state  # there may be no room for two
        state = self.checkpoints.restore(scheduled=True)
        if state is None:
            state = start.first_state(self.experiment, lambda line: None, self.base, self.layout)
        self.checkpoints.forget_after(int(state.step))
        self.progress.say(
            f"{section.limit} steps in a row were not taken: back to step {int(state.step):,}, and "
            f"on with batch {cursor:,} (it was at {int(state.cursor):,})"
        )
        self.writer.close()
        counted = faults.rolled_back(state.faults, refused.skipped, refused.rollbacks)
        self._begin(dataclasses.replace(state, faults=counted, cursor=refused.cursor))

    def _diverged(self, step: int, what: str) -> Diverged:
        """The error, with a way on that works."""
        self.checkpoints.wait()
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
