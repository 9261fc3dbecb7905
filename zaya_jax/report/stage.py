"""What the page of a run says when it is a stage of reinforcement learning; docs/rl.md.

Rewards, lengths and answers to held-out tasks; whether generation and trainer agree; canaries; how
time was shared; and rollouts to read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from zaya_jax.report.bands import Band, bands
from zaya_jax.report.content import Code, Figure, Part, Section, Table, Text
from zaya_jax.report.run import Record, Run, asks, column
from zaya_jax.rl import calibration
from zaya_jax.rl.record import ROLLOUTS

READ = 4
"""Groups that are shown, from the first to the last."""
SHOWN, LONGEST = 4, 1200
"""Rollouts of a group, and characters of one."""
CALIBRATED = 20
"""Environments whose calibration is shown."""


class Curve(NamedTuple):
    """A field of the metrics of a stage, as a line of a figure."""

    field: str
    label: str


class Plot(NamedTuple):
    """A figure: lines over the updates, what the axis says, and how it is to be read."""

    title: str
    curves: tuple[Curve, ...]
    y: str
    note: str


LEARNING = (
    Plot(
        "Answers that are right",
        (
            Curve("heldout_accuracy", "held-out tasks"),
            Curve("passed", "training tasks, sampled"),
            Curve("solve_rate", "of the groups learnt from"),
        ),
        "share",
        "Groups that are all right or all wrong teach nothing and are not learnt from.",
    ),
    Plot(
        "Mean reward",
        (Curve("reward", "mean reward"),),
        "reward",
        "Of all sampled answers: a verifier's verdict, or a reward model's on what passes it.",
    ),
    Plot(
        "Length of answers",
        (Curve("heldout_length", "held-out tasks"), Curve("length", "sampled")),
        "tokens",
        "Of those learnt from, and of those that were scored.",
    ),
    Plot(
        "Entropy of the policy",
        (Curve("entropy", "entropy"),),
        "nats a token",
        "Estimated at the sampled tokens.",
    ),
)
CURRICULUM = (
    Plot(
        "Difficulty of the tasks",
        (
            Curve("difficulty_mean", "mean of the environments"),
            Curve("difficulty_max", "largest"),
        ),
        "difficulty",
        "A level more when more than 0.7 of a group is right, one less when none is.",
    ),
    Plot(
        "How much is solved where it stands",
        (Curve("passed", "sampled answers that are right"),),
        "share",
        "A policy that is held at its boundary solves about half, whatever the difficulty.",
    ),
    Plot(
        "Groups that moved no difficulty",
        (Curve("stale_share", "asked before it moved"),),
        "share of the groups",
        "",
    ),
)
AGREEMENT = (
    Plot(
        "Do generation and trainer agree?",
        (Curve("kl", "KL of generation from trainer"),),
        "nats a token",
        "K3 estimate over the tokens of an update; staleness is part of it.",
    ),
    Plot(
        "Correlation of their probabilities",
        (Curve("pearson", "Pearson"),),
        "correlation",
        "Of the probabilities of the sampled tokens under either (report, figure 6).",
    ),
    Plot(
        "Staleness",
        (Curve("staleness", "of the oldest token"),),
        "updates",
        "Between the weights that sampled a token and those that learn from it.",
    ),
    Plot(
        "Tokens kept from the gradient",
        (Curve("masked", "outside the trust region"), Curve("capped", "ratio above its cap")),
        "share of tokens",
        "DPPO's mask, and importance weights that were cut off.",
    ),
)
CANARIES = (
    Plot(
        "Canaries",
        (
            Curve("gibberish", "rollouts with gibberish"),
            Curve("cut", "rollouts cut off at the budget"),
        ),
        "share of rollouts",
        "Gibberish: a token both rare and improbable. It decides nothing.",
    ),
    Plot(
        "Rare tokens",
        tuple(
            Curve(f"rarest_{percent}_percent", f"rarest {percent}% of the vocabulary")
            for percent in (10, 5, 2, 1)
        ),
        "share of tokens",
        "Of the responses that were learnt from.",
    ),
    Plot(
        "Lost, over the whole run",
        (
            Curve("loops", "loops, reward 0"),
            Curve("verifier_failures", "verifier failures"),
            Curve("lost_rollouts", "rollouts lost with their workers"),
            Curve("evicted", "groups evicted"),
            Curve("stale", "groups too old"),
        ),
        "count",
        "A rollout whose verifier failed is left out of its group.",
    ),
)
TIME = (
    Plot(
        "Tokens a second",
        (Curve("generated_per_second", "decoded"), Curve("learnt_per_second", "learnt from")),
        "tokens/s",
        "While generating, and while learning; only tokens of responses count.",
    ),
    Plot(
        "Busy shares",
        (Curve("learning_share", "trainer"), Curve("generating_share", "generation")),
        "share of the time",
        "They add up to more than 1 where both work at the same time (rl.overlap); what is missing "
        "to 1 is compilation, scoring and saving.",
    ),
)


def is_stage(run: Run) -> bool:
    """Whether a run asks tasks."""
    return asks(run.config)


def lead(run: Run) -> str:
    """What came of it, in a sentence."""
    if not run.evaluations:
        return f"{run.step:,} updates, and no held-out task scored yet."
    first, last = run.evaluations[0], run.evaluations[-1]
    return (
        f"{last['heldout_accuracy']:.1%} of the held-out tasks are right after "
        f"{last['step']:,} updates, from {first['heldout_accuracy']:.1%} at update "
        f"{first['step']:,}."
    )


OF_TEXTS = ("tokens trained on", "training loss, last", "tokens per second, median")
"""Numbers of runs on texts that say nothing of a stage."""


def results(run: Run) -> Record:
    """The numbers that matter, by name."""
    found: Record = {}
    if run.evaluations:
        first, last = run.evaluations[0], run.evaluations[-1]
        found["held-out tasks right, at the start"] = first["heldout_accuracy"]
        found["held-out tasks right, at the end"] = last["heldout_accuracy"]
        found["tokens of an answer, at the end"] = last.get("heldout_length")
    if run.train:
        last = run.train[-1]
        names = {
            "sampled answers right, last": "passed",
            "mean reward, last": "reward",
            "generated tokens per second": "generated_per_second",
            "trained tokens per second": "learnt_per_second",
            "generated to trained tokens per second": "generated_to_learnt",
            "share of the time spent learning": "learning_share",
        }
        found |= {title: last[name] for title, name in names.items() if name in last}
        ages = [record["staleness"] for record in run.train if "staleness" in record]
        found["most updates behind"] = max(ages, default=None)
    return found | {name: value for name, value in run.results.items() if name not in OF_TEXTS}


def sections(run: Run) -> list[Section]:
    """All that is shown of a stage but its commands, config and place."""
    graded = any("difficulty_mean" in record for record in run.records)
    return [
        Section("Answers", list(_figures(run, LEARNING))),
        Section("Curriculum", [*_figures(run, CURRICULUM), *_calibration(run)] if graded else []),
        Section("Generation and trainer", list(_figures(run, AGREEMENT))),
        Section("Canaries and losses", list(_figures(run, CANARIES))),
        Section("Time", list(_figures(run, TIME))),
        Section("Rollouts to read", list(_rollouts(run)), folded=True),
    ]


def _figures(run: Run, plots: Sequence[Plot]) -> Iterator[Figure]:
    for plot in plots:
        found: dict[str, Band | None] = {}
        for curve in plot.curves:
            steps, values = column(run.records, curve.field)
            if len(steps):
                found[curve.label] = Band(np.array(steps), values[None])
        if found:
            drawn = bands(plot.title.lower(), found, "update", plot.y)
            yield Figure(plot.title, drawn, plot.note)


def _calibration(run: Run) -> Iterator[Part]:
    found = calibration.read(run.folder).get("environments")
    if not found:
        return
    several = f"{len(found)} environments were" if len(found) > 1 else "The environment was"
    yield Text(
        f"{several} calibrated before the first update (equations 12 to 14): "
        "where half would be solved, with the 90% interval, and what was seen there.",
        "note",
    )
    rows = []
    for name, known in list(found.items())[:CALIBRATED]:
        seen = Counter({d: 0 for d, _, _ in known["seen"]})
        tried = Counter(seen)
        for difficulty, right, tries in known["seen"]:
            seen[difficulty] += right
            tried[difficulty] += tries
        said = ", ".join(f"{d:g}: {seen[d]} of {tried[d]}" for d in sorted(tried))
        between = f"{known['crossing']:.1f} ({known['low']:.1f} to {known['high']:.1f})"
        rows.append([name, str(known["start"]), between, said])
    yield Table(rows, ["environment", "begins at", "crossing", "right, by difficulty"])


def _rollouts(run: Run) -> Iterator[Part]:
    groups = read_rollouts(run)
    if not groups:
        return
    yield Text(
        f"{len(groups)} groups are in {ROLLOUTS}; these are from the first to the last.", "note"
    )
    for place in sorted({round(i) for i in np.linspace(0, len(groups) - 1, READ)}):
        yield from _group(groups[place])


def read_rollouts(run: Run) -> list[Record]:
    """The groups that were kept to be read, in order; lines cut off by a crash are left out."""
    found = []
    file = run.folder / ROLLOUTS
    for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
        try:
            group = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(group, Mapping) and isinstance(group.get("responses"), list):
            found.append(dict(group))
    return found


def _group(group: Record) -> Iterator[Part]:
    yield Text(f"Update {group.get('step', '?')}, task {group.get('task', '?')}:")
    yield Code(_short(str(group.get("prompt", ""))))
    ranked = sorted(group["responses"], key=lambda r: -(r.get("reward") or 0.0))
    # The best and the worst: what is learnt is the difference.
    chosen = ranked[: SHOWN // 2] + ranked[len(ranked) - SHOWN // 2 :]
    for response in chosen if len(ranked) > SHOWN else ranked:
        reward = response.get("reward")
        said = "lost" if reward is None else f"reward {reward:g}"
        yield Text(f"{said}, ended by {response.get('finish', '?')}", "note")
        yield Code(_short(str(response.get("text", ""))))


def _short(words: str) -> str:
    return words if len(words) <= LONGEST else f"{words[:LONGEST]} ... ({len(words):,} characters)"
