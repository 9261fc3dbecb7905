"""A stage of RL: generation and learning, in flight of each other (PipelineRL, report IV-D).

    while a batch is not full:  the engine steps; finished groups are judged; those that teach wait
    learn from the batch        (with `rl.overlap` the next one is generated meanwhile)
    every `swap_every` updates: the engine goes on with the new weights, in the middle of rollouts

All in an order that no clock has a say in: with overlap too, weights are swapped only when both the
update is made and the next batch is full. At a checkpoint, and to be scored, generation runs dry:
what is saved is then the weights, the groups that wait and the number of the next task, and a run
that was killed comes to the same batches again.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zaya_jax.config import Experiment
from zaya_jax.config.rl import RL
from zaya_jax.errors import UserError
from zaya_jax.model.router import classes
from zaya_jax.rl import calibration, gibberish, saved, scoring, workers
from zaya_jax.rl import record as record_lib
from zaya_jax.rl.batch import prepare
from zaya_jax.rl.buffer import Buffer
from zaya_jax.rl.collect import Collected, Collector
from zaya_jax.rl.curriculum import schedule
from zaya_jax.rl.host import opened
from zaya_jax.rl.learner import Learner
from zaya_jax.rl.preference.judge import RewardModel
from zaya_jax.rl.record import ROLLOUTS
from zaya_jax.rl.rewards.score import Scorer
from zaya_jax.rl.rollout import Group, staleness
from zaya_jax.train import interrupt, metrics, setup, start, workdir
from zaya_jax.train.checkpoint import Checkpoints
from zaya_jax.train.metrics import Writer
from zaya_jax.train.progress import Progress, clock
from zaya_jax.train.throughput import Compilations, compilations, peak_memory_bytes


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
      folder: the run directory.
      step: updates made.
      accuracy: of the held-out tasks, greedily, by the update at which they were scored.
      interrupted: the signal that left something undone, if one did.
    """

    folder: Path
    step: int
    accuracy: dict[int, float]
    interrupted: signal.Signals | None


def run(experiment: Experiment, folder: Path | str, progress: Progress | None = None) -> Outcome:
    """Runs a stage in a run directory, from where it stands to its last update.

    Raises:
      UserError: no `train.init_from`; what `workdir`, `start`, `Questions`, `Engine` and
        `Checkpoints` say; or nothing to learn from.
    """
    folder, progress = Path(folder), progress or Progress(experiment.train.steps)
    if experiment.train.init_from is None:
        raise UserError("train.init_from: RL starts from weights that can answer; name them")
    with ExitStack() as stack:
        workdir.open_run(experiment, folder, stack)
        workdir.record_environment(folder)
        checkpoints = stack.enter_context(closing(Checkpoints(folder, experiment)))
        stop = stack.enter_context(interrupt.requests())
        scorer = stack.enter_context(_scorer(experiment.rl))
        compiled = stack.enter_context(compilations())
        stage = _Stage(experiment, folder, checkpoints, scorer, progress, stop, compiled)
        stack.callback(stage.close)
        return stage()


class _Stage:
    """One call of `run`, with everything at hand."""

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        checkpoints: Checkpoints,
        scorer: Scorer,
        progress: Progress,
        stop: interrupt.Request,
        compiled: Compilations,
    ):
        self.experiment, self.folder, self.section = experiment, folder, experiment.rl
        self.compiled = compiled
        self.checkpoints, self.scorer = checkpoints, scorer
        self.progress, self.stop, self.cadence = progress, stop, experiment.train
        base = start.load_base(experiment, folder, progress.say) if experiment.lora.rank else None
        frozen = {} if base is None else base.params
        state = checkpoints.restore()
        begins = state is None
        if state is None:
            state = start.first_state(experiment, progress.say, base)
            wait = Buffer(self.section.buffer * self.section.prompts, self.section.staleness)
            there = saved.Progress(wait, [0], {}, {})
        else:
            there = saved.read(folder, int(state.step))
            progress.say(f"resuming {folder} at update {int(state.step):,}")
        self.best = there.best
        self.learner = Learner(experiment, self.section, state, frozen)
        self.opened = opened(experiment)
        self.tokenizer = self.opened.loaded.require_tokenizer()
        setup.keep_tokenizer(experiment, self.tokenizer, folder)
        record_lib.same_tasks(folder, self.opened.questions.fingerprint, new=begins)
        self.rollouts = self._open_rollouts(there.numbers)
        if self.rollouts.graded is not None and there.curriculum is not None:
            self.rollouts.graded.restore(there.curriculum)
        self.collector = Collector(
            self.rollouts,
            scorer,
            self.section,
            there.buffer,
            there.counts,
            progress.say,
            RewardModel(self.section.reward_model) if self.section.reward_model else None,
        )
        self.writer = Writer(folder, self.learner.updates, experiment)
        self.accuracy: dict[int, float] = {
            record["step"]: record["heldout_accuracy"]
            for record in metrics.read(folder)
            if "heldout_accuracy" in record
        }
        self.told_of = Counter(there.told)
        record_lib.trim(folder, self.learner.updates)
        self.began, self.learning, self.refused = time.monotonic(), 0.0, 0
        self.beside = ThreadPoolExecutor(1, "generation")

    def _open_rollouts(self, numbers: list[int]) -> workers.Rollouts:
        policy, updates = self.learner.policy(), self.learner.updates
        if self.section.rollout != "inline":
            return workers.Pool(self.experiment, numbers, *policy, updates, self.progress.say)
        # On the last device, which is the first where there is one.
        device = jax.local_devices()[-1 if self.section.overlap else 0]
        return workers.Inline(self.experiment, self.opened, numbers, *policy, updates, device)

    def close(self) -> None:
        """Ends what is open."""
        self.beside.shutdown()
        self.rollouts.close()
        self.writer.close()

    def __call__(self) -> Outcome:
        if self.learner.updates == 0:
            if not self._calibrate():
                return self._outcome(done=False)
            self._score(0)
        batch: Collected | None = None
        while self.learner.updates < self.cadence.steps:
            version = self.learner.updates
            batch = batch or self.collector.batch(version, self._stopped, self._tick)
            if batch is None:
                self.progress.say(
                    f"stopped by {self.stop.signal.name if self.stop.signal else 'a signal'}; the "
                    "same command goes on from the last checkpoint"
                )
                break
            ahead = self._generate_ahead(version + 1)
            try:
                self._learn(batch)
            finally:
                batch = ahead.result() if ahead is not None else None
            self._after_update(self.learner.updates)
        self.checkpoints.wait()
        return self._outcome(self.learner.updates >= self.cadence.steps)

    def _calibrate(self) -> bool:
        """Once, before the first update; whether there is nothing left of it to do."""
        graded, section = self.rollouts.graded, self.section
        if graded is None or not section.curriculum.rounds or not self.cadence.steps:
            return True
        done = calibration.begin(
            graded, self.rollouts, self.opened.chat, self.scorer, section, seed=self.cadence.seed,
            folder=self.folder, say=self.progress.say, stop=self._stopped,
        )  # fmt: skip
        self.rollouts.swap(*self.learner.policy(), 0)  # forgets the prefixes
        return done

    def _outcome(self, done: bool) -> Outcome:
        stopped = None if done else self.stop.signal
        return Outcome(self.folder, self.learner.updates, self.accuracy, stopped)

    def _stopped(self) -> bool:
        return bool(self.stop)

    def _tick(self) -> None:
        if self.progress.due():
            self._show()

    def _generate_ahead(self, version: int) -> Future[Collected | None] | None:
        """Begins the batch of update `version + 1`, beside the update that is made now; not where
        generation runs dry after it."""
        if not self.section.overlap or self._runs_dry(version) or version >= self.cadence.steps:
            return None
        return self.beside.submit(self.collector.batch, version, self._stopped)

    def _runs_dry(self, step: int) -> bool:
        return self._is_due(step, self.cadence.eval_every) or self._is_due(
            step, self.cadence.checkpoint_every
        )

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.cadence.steps

    def _learn(self, batch: Collected) -> None:
        groups, began = batch.groups, time.monotonic()
        model, ages = self.experiment.model, [staleness(g, self.learner.updates) for g in groups]
        prepared = prepare(
            groups,
            self.best,
            self.section,
            layers=model.num_layers,
            classes=classes(model),
            pad_id=model.pad_id,
        )
        self.best = prepared.best
        record: dict[str, Any] = self.learner.learn(prepared)
        step = self.learner.updates
        self.learning += time.monotonic() - began
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        since = Counter(batch.counts)
        since.subtract(self.told_of)
        self.told_of = Counter(batch.counts)
        seen = max(since["rollouts"], 1)
        wall = max(time.monotonic() - self.began, 1e-9)
        record |= {
            "solve_rate": prepared.solve_rate,
            "reward": since["reward"] / seen,
            "passed": since["passed"] / seen,
            "cut": since["cut"] / seen,
            "length": float(prepared.lengths.mean()),
            "staleness": max(ages),
            "uninformative": batch.counts["uninformative"],
            "evicted": batch.evicted,
            "stale": batch.stale,
            "loops": batch.counts["loops"],
            "lost_rollouts": self.rollouts.lost,
            "verifier_failures": batch.counts["failures"],
            "gibberish": _gibberish(rollouts, model.vocab_size),
            **_rare(rollouts, model.vocab_size),
            "microbatches": len(prepared.microbatches),
            "generated_per_second": (made := batch.generated / max(batch.seconds, 1e-9)),
            "learnt_per_second": (learnt := record["tokens"] / max(time.monotonic() - began, 1e-9)),
            "generated_to_learnt": made / max(learnt, 1e-9),
            "generating_share": batch.seconds / wall,
            "learning_share": self.learning / wall,
            "compilations": self.compiled.count,
            "peak_memory_bytes": peak_memory_bytes(jax.local_devices()[0]),
        }
        if self.rollouts.graded is not None:
            record |= schedule.metrics(self.rollouts.graded.curriculum)
        if self.section.reward_model:  # its rewards are no verdicts: none is 1
            del record["solve_rate"]
        self.writer(step, record)
        self.refused = 0 if record["accepted"] else self.refused + 1
        if self.refused >= self.experiment.faults.limit:
            raise UserError(
                f"{self.refused} updates in a row were not taken (loss {record['loss']:.4g}, "
                f"gradient norm {record['grad_norm']:.4g}): lower optim.learning_rate; the same "
                "command goes on from the last checkpoint"
            )
        if step % self.cadence.log_every == 0 or step == 1:
            self._keep_sample(step, groups[0])
        self._show(record)

    def _after_update(self, step: int) -> None:
        dry = self._runs_dry(step)
        if dry:
            self.collector.drain()
        if dry or step % self.section.swap_every == 0:
            self.rollouts.swap(*self.learner.policy(), step)
        if self._is_due(step, self.cadence.eval_every):
            self._score(step)
            # Once more, which forgets the prefixes of held-out tasks: a resumed run has none.
            self.rollouts.swap(*self.learner.policy(), step)
        if self._is_due(step, self.cadence.checkpoint_every):
            wait, counts = self.collector.buffer, self.collector.counts
            graded = self.rollouts.graded
            there = saved.Progress(
                wait,
                self.rollouts.numbers,
                self.best,
                counts,
                graded.state() if graded else None,
                self.told_of,
            )
            self.checkpoints.wait()  # until the last one has its name: its file is not a leftover
            saved.write(self.folder, step, there)
            self.checkpoints.save(self.learner.state)

    def _score(self, step: int) -> None:
        """Answers the held-out tasks; nothing else is under way."""
        tasks, section = self.opened.questions.heldout, self.section
        if not tasks:
            return
        began = time.monotonic()
        found = scoring.score(
            self.rollouts, self.opened.chat, tasks, self.scorer, section.scoring, section.max_tokens
        )
        self.accuracy[step] = accuracy = found.accuracy
        self.writer(
            step,
            {
                "heldout_accuracy": accuracy,
                "heldout_length": found.length,
                "heldout_decoded": found.decoded,
                "heldout_prompt": found.prompt,
                "heldout_failures": found.failures,
            },
        )
        error = 1.96 * math.sqrt(accuracy * (1 - accuracy) / len(tasks))
        self.progress.say(
            f"update {step:,}: {accuracy:.1%} +- {error:.1%} of {len(tasks)} held-out tasks right, "
            f"{found.length:.0f} tokens each ({clock(time.monotonic() - began)}){found.warning}"
        )

    def _keep_sample(self, step: int, group: Group) -> None:
        tokenizer = self.tokenizer

        def text(ids: np.ndarray) -> str:
            """A model may be larger than its tokenizer; what nobody can read is left out."""
            return tokenizer.decode(ids[ids < tokenizer.vocab_size].tolist(), keep_special=True)

        with (self.folder / ROLLOUTS).open("a") as file:
            line = {
                "step": step,
                "task": group.task,
                "source": group.source,
                "prompt": text(group.rollouts[0].prompt),
                "responses": [
                    {
                        "text": text(rollout.completion),
                        "reward": None if math.isnan(reward) else reward,
                        "finish": rollout.finish,
                        "versions": [int(v) for v in rollout.versions[[0, -1]]]
                        if rollout.versions.size
                        else [],
                    }
                    for rollout, reward in zip(group.rollouts, group.rewards.tolist(), strict=True)
                ],
            }
            file.write(json.dumps(line) + "\n")

    def _show(self, record: dict[str, Any] | None = None) -> None:
        step, steps = self.learner.updates, self.cadence.steps
        words = f"update {step:>{len(str(steps))}}/{steps}"
        if record is not None:
            words += f"  reward {record['reward']:.3f}  length {record['length']:.0f}"
        else:
            words += f"  {len(self.collector.buffer.groups)} of {self.section.prompts} groups"
        rate = self.collector.generated / max(self.collector.seconds, 1e-9)
        self.progress.draw(f"{words}  {rate:,.0f} tokens/s generated")


def _scorer(section: RL) -> Scorer:
    return Scorer(processes=section.verifier_processes, seconds=section.verifier_seconds)


def _rare(rollouts: Sequence[Any], vocabulary: int) -> dict[str, float]:
    """Shares of tokens that are among the rarest of the vocabulary, by how rare."""
    tokens = np.concatenate([rollout.completion for rollout in rollouts])
    found = gibberish.rare_fractions(tokens.tolist(), vocabulary)
    return {f"rarest_{round(100 * share)}_percent": value for share, value in found.items()}


def _gibberish(rollouts: Sequence[Any], vocabulary: int) -> float:
    """Share of rollouts with a token that is both rare and improbable."""
    flagged = [
        gibberish.gibberish(r.completion.tolist(), r.logprobs.tolist(), vocabulary).any()
        for r in rollouts
    ]
    return float(np.mean(flagged))
