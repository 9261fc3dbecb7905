"""What the runs of a sweep are judged by: functions from what a run wrote to one number.

To add one: a function of `Lines`, and its line in `MEASURES`. None means that the run has no such
number (yet): it never came to balance, there was no shift, nothing was evaluated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zaya_jax.config import ConfigError, Experiment, Sweep
from zaya_jax.errors import hint
from zaya_jax.train import metrics

BALANCED = 0.99
"""Load entropy, mean of the layers, from which the experts count as balanced."""
HELD = 10
"""Logged lines for which balance has to last; also those that tell a level before a shift."""
RECOVERED = 0.99
"""Share of its level before a shift at which load entropy is back."""
LAST = 0.1
"""Share of the lines that stands for the end of a run."""


@dataclasses.dataclass(frozen=True)
class Lines:
    """What a run wrote to `metrics.jsonl`, in order.

    Attributes:
      train: records of training steps. evaluations: of what was held out, text or tasks.
      shifts: steps at which the data mixture changes (`data.mixture_schedule`).
    """

    train: Sequence[dict[str, Any]]
    evaluations: Sequence[dict[str, Any]]
    shifts: tuple[int, ...] = ()

    def until(self, step: int) -> Lines:
        """What was known after the evaluation at `step`."""
        return dataclasses.replace(
            self,
            train=[record for record in self.train if record["step"] <= step],
            evaluations=[record for record in self.evaluations if record["step"] <= step],
        )


def shifts_in(schedule: Iterable[Sequence[Any]]) -> tuple[int, ...]:
    """The steps of a `data.mixture_schedule` at which the mixture changes, in order."""
    return tuple(sorted(step for step, _ in schedule if step > 0))


def read(folder: Path, experiment: Experiment) -> Lines:
    """The lines of a run directory."""
    records = metrics.read(folder)
    return Lines(
        train=[record for record in records if "loss" in record],
        evaluations=[record for record in records if metrics.is_evaluation(record)],
        shifts=shifts_in(experiment.data.mixture_schedule),
    )


def bits_per_byte(lines: Lines) -> float | None:
    """Of the held-out text, at the last evaluation."""
    return _evaluated(lines, "heldout_bits_per_byte")


def loss_per_target(lines: Lines) -> float | None:
    """Nats per target of the held-out text, at the last evaluation."""
    return _evaluated(lines, "heldout_loss")


def heldout_accuracy(lines: Lines) -> float | None:
    """Share of the held-out tasks that `rl.scoring` answers right, at the last evaluation."""
    return _evaluated(lines, "heldout_accuracy")


def heldout_length(lines: Lines) -> float | None:
    """Tokens of an answer to a held-out task, at the last evaluation."""
    return _evaluated(lines, "heldout_length")


def heldout_decoded(lines: Lines) -> float | None:
    """D(q): tokens decoded for a held-out task, by all of its rollouts, at the last evaluation."""
    return _evaluated(lines, "heldout_decoded")


def heldout_prompt(lines: Lines) -> float | None:
    """Tokens of the longest prompt of a held-out task, at the last evaluation."""
    return _evaluated(lines, "heldout_prompt")


def solve_rate(lines: Lines) -> float | None:
    """Share of the sampled answers that are right, mean of the last tenth of the lines."""
    return _at_the_end(lines, "reward")


def disagreement(lines: Lines) -> float | None:
    """KL of what generated from what learns, mean of the tokens of all updates (K3 estimate)."""
    _, values = _series(lines.train, "kl")
    return float(values.mean()) if values.size else None


def steps_to_balance(lines: Lines) -> float | None:
    """First logged step at which load entropy (mean of the layers) is 0.99 or more, and stays so
    for the 10 logged lines that follow; none if that never happened, or too close to the end.

    Where loads are logged (`train.log_loads`), it is the entropy of the last 10 logged batches
    together: the documents of one small batch have loads of their own, however even the biases."""
    steps, entropy = _pooled_entropy(lines.train)
    if not steps.size:
        steps, entropy = _series(lines.train, "load_entropy")
    balanced = entropy >= BALANCED
    for i in range(len(steps) - HELD):
        if balanced[i : i + HELD + 1].all():
            return float(steps[i])
    return None


def imbalance(lines: Lines) -> float | None:
    """1 - load entropy, mean of all logged steps and layers: how far from an even load the run was
    on the whole, be it because it came there late or because it swung."""
    _, entropy = _series(lines.train, "load_entropy")
    return float(1 - entropy.mean()) if entropy.size else None


def final_load_entropy(lines: Lines) -> float | None:
    """Entropy of the experts' loads over its largest value, mean of the layers and of the last
    tenth of the lines."""
    return _at_the_end(lines, "load_entropy")


def dead_experts(lines: Lines) -> float | None:
    """Experts with less than a tenth of an even share of a batch, in all layers together; mean of
    the last tenth of the lines."""
    return _at_the_end(lines, "dead_experts", np.sum)


def routing_entropy(lines: Lines) -> float | None:
    """Entropy of a token's own distribution over the classes, mean of tokens, layers and the last
    tenth of the lines."""
    return _at_the_end(lines, "routing_entropy")


def residual_growth(lines: Lines) -> float | None:
    """Norm of the residual stream after the last layer over that after the first; mean of the last
    tenth of the lines."""
    return _at_the_end(lines, "residual_norm", lambda norms: norms[-1] / norms[0])


def residual_norm_last(lines: Lines) -> float | None:
    """Norm of the residual stream after the last layer, mean of the last tenth of the lines."""
    return _at_the_end(lines, "residual_norm", lambda norms: norms[-1])


def recovery_steps(lines: Lines) -> float | None:
    """Steps from the first shift of the data mixture until load entropy is back at 0.99 of its
    level before (mean of 10 lines) and stays there until the next shift or the end; 0 if it never
    left, none if it is not back by then, or in a run that was rolled back."""
    found = _around_shift(lines, "load_entropy")
    if found is None:
        return None
    shift, before, steps, after = found
    low = np.flatnonzero(after < RECOVERED * before)
    if not low.size:
        return 0.0
    return float(steps[low[-1] + 1] - shift) if low[-1] + 1 < len(steps) else None


def dip(lines: Lines) -> float | None:
    """How far load entropy falls, at the lowest, below its level before the first shift; none in
    a run that was rolled back."""
    found = _around_shift(lines, "load_entropy")
    return None if found is None else max(0.0, found[1] - float(found[3].min()))


def overshoot(lines: Lines) -> float | None:
    """How far the largest load of an expert (mean of the layers) rises, at the highest, above its
    level before the first shift; none in a run that was rolled back."""
    found = _around_shift(lines, "max_load")
    return None if found is None else max(0.0, float(found[3].max()) - found[1])


def tokens_per_second(lines: Lines) -> float | None:
    """Median over the logged steps, without evaluations and saves."""
    _, rates = _series(lines.train, "tokens_per_second")
    return float(np.median(rates)) if rates.size else None


def seconds(lines: Lines) -> float | None:
    """Wall time of compilation, steps and evaluations, over all starts of the run."""
    both = [*lines.train, *lines.evaluations]
    return max((record["seconds"] for record in both), default=None)


Goal = Literal["minimize", "maximize"]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A function of `Lines` with what a table says of it.

    Attributes:
      goal: which values are better: minimize or maximize.
    """

    function: Callable[[Lines], float | None]
    title: str
    unit: str
    goal: Goal

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def about(self) -> str:
        return " ".join((self.function.__doc__ or "").split())

    def __call__(self, lines: Lines) -> float | None:
        """The number, or None where there is none."""
        value = self.function(lines)
        return None if value is None or not math.isfinite(value) else value


LESS: Goal = "minimize"
MORE: Goal = "maximize"

MEASURES = {
    measure.name: measure
    for measure in (
        Measure(bits_per_byte, "held-out bits per byte", "bits", LESS),
        Measure(loss_per_target, "held-out loss", "nats", LESS),
        Measure(heldout_accuracy, "held-out tasks right", "", MORE),
        Measure(heldout_length, "tokens of an answer", "tokens", LESS),
        Measure(heldout_decoded, "tokens decoded for a task", "tokens", LESS),
        Measure(heldout_prompt, "longest prompt", "tokens", LESS),
        Measure(solve_rate, "sampled answers right", "", MORE),
        Measure(disagreement, "KL of generation and trainer", "nats", LESS),
        Measure(steps_to_balance, "steps to balance", "steps", LESS),
        Measure(imbalance, "imbalance", "", LESS),
        Measure(final_load_entropy, "load entropy at the end", "", MORE),
        Measure(dead_experts, "dead experts", "experts", LESS),
        Measure(routing_entropy, "routing entropy", "nats", LESS),
        Measure(residual_growth, "growth of the residual norm", "", LESS),
        Measure(residual_norm_last, "residual norm after the last layer", "", LESS),
        Measure(recovery_steps, "steps to recover from a shift", "steps", LESS),
        Measure(dip, "fall of load entropy after a shift", "", LESS),
        Measure(overshoot, "overshoot of the largest load after a shift", "", LESS),
        Measure(tokens_per_second, "speed", "tokens/s", MORE),
        Measure(seconds, "wall time", "s", LESS),
    )
}


def check(sweep: Sweep) -> None:
    """Looks whether a sweep's measures are known.

    Raises:
      ConfigError: one is not.
    """
    named = [("objective", sweep.objective), *(("measures", name) for name in sweep.measures)]
    named += [("claims", claim[0]) for claim in sweep.claims]
    for field, name in named:
        if name not in MEASURES:
            raise ConfigError(f"{field}: no measure {name!r}{hint(str(name), MEASURES)}")


def _series(
    records: Sequence[dict[str, Any]], field: str, reduce: Callable[[np.ndarray], Any] = np.mean
) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a field, reduced over the layers; lines without a number are left out."""
    pairs = [(r["step"], reduce(np.array(r[field], float))) for r in records if field in r]
    table = np.array(pairs, float).reshape(-1, 2)
    table = table[np.isfinite(table[:, 1])]
    return table[:, 0], table[:, 1]


def _evaluated(lines: Lines, field: str) -> float | None:
    """What the last evaluation says of a field."""
    return lines.evaluations[-1].get(field) if lines.evaluations else None


def _pooled_entropy(records: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps, from the tenth logged on, and the entropy of the mean load of the last 10 logged
    batches over its largest value, mean of the layers; both empty without logged loads."""
    known = [record for record in records if "load" in record]
    loads = np.array([record["load"] for record in known], float)  # [N, L, E]
    if len(known) < HELD or loads.shape[-1] < 2:
        return np.empty(0), np.empty(0)
    pooled = np.lib.stride_tricks.sliding_window_view(loads, HELD, axis=0).mean(axis=-1)
    nats = -np.sum(pooled * np.log(np.where(pooled > 0, pooled, 1.0)), axis=-1)
    steps = np.array([record["step"] for record in known[HELD - 1 :]], float)
    return steps, nats.mean(axis=-1) / math.log(loads.shape[-1])


def _at_the_end(
    lines: Lines, field: str, reduce: Callable[[np.ndarray], Any] = np.mean
) -> float | None:
    """Mean of the last tenth of the lines."""
    _, values = _series(lines.train, field, reduce)
    return float(values[-math.ceil(LAST * values.size) :].mean()) if values.size else None


def after_shift(lines: Lines) -> tuple[int, float] | None:
    """The first shift, and the step of the next one or infinity; None without a shift.

    None after a rollback too: batches that are skipped bring the shift to an earlier step than the
    config's."""
    if not lines.shifts or any(record.get("rollbacks") for record in lines.train):
        return None
    first, *later = sorted(lines.shifts)
    return first, later[0] if later else math.inf


def _around_shift(lines: Lines, field: str) -> tuple[int, float, np.ndarray, np.ndarray] | None:
    """The first shift, the level before it, and steps and values up to the next one or the end;
    None where `after_shift` is, or there are no lines on one side."""
    stretch = after_shift(lines)
    if stretch is None:
        return None
    first, end = stretch
    steps, values = _series(lines.train, field)
    before = steps <= first
    after = (steps > first) & (steps <= end)
    if not before.any() or not after.any():
        return None
    return first, float(values[before][-HELD:].mean()), steps[after], values[after]
