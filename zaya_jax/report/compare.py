"""The page of a comparison: arms that differ in a few fields, each run under several seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from zaya_jax import costs
from zaya_jax.report import arms as arms_lib
from zaya_jax.report import run as run_lib
from zaya_jax.report import sections, words
from zaya_jax.report.arms import Arm
from zaya_jax.report.bands import intervals
from zaya_jax.report.content import (
    Badge,
    Code,
    Figure,
    Page,
    Part,
    Section,
    Table,
    Text,
    flat,
    mean_and_half,
    setting,
)
from zaya_jax.report.study import Study
from zaya_jax.sweep.measures import MEASURES
from zaya_jax.sweep.statistics import AGREES, DISAGREES, NOT_SETTLED, Verdict

OBJECTIVE = "bits_per_byte"
MEASURED = (
    "steps_to_balance",
    "imbalance",
    "final_load_entropy",
    "routing_entropy",
    "residual_growth",
    "recovery_steps",
    "tokens_per_second",
)
"""What runs that no sweep made are compared in, as far as they have it."""

FEW = 5
"""Arms of which each has its heatmaps."""
DOTS = "Mean (dot), 95% interval (bar; an arrow: it goes on), every seed (ring)."
BOUNDS = {"at least": "<", "at most": ">", "about": "≈"}
"""Of a gain in steps, as those of the difference, which has the other sign."""
TONES = {AGREES: "good", DISAGREES: "bad", NOT_SETTLED: "open"}


@dataclasses.dataclass(frozen=True)
class Claim:
    """That one arm is better than another in a measure, and who says so."""

    measure: str
    better: str
    worse: str
    source: str


def of_runs(folders: Sequence[Path]) -> Page:
    """The page of any runs.

    Raises:
      UserError: one of the directories is no run.
    """
    runs = [run_lib.read(folder) for folder in folders]
    arms, odd = arms_lib.group(runs)
    problems = [*odd, *(f"{run.folder}: {said}" for run in runs for said in run.problems)]
    measures = [OBJECTIVE, *(name for name in MEASURED if _known(arms, name))]
    parts = [
        Section("Commands", [Code("\n".join(_commands(runs)))] if _commands(runs) else []),
        *sections.place(runs),
    ]
    title = "Comparison of " + ", ".join(dict.fromkeys(run.name for run in runs))
    return _page(title, "", arms, measures, (), problems, parts)


def of_study(study: Study) -> Page:
    """The page of a sweep over arms."""
    arms = list(study.arms.values())
    claims = [Claim(*claim) for claim in study.settings["claims"] if len(claim) == 4]
    about = study.settings["about"]
    return _page(
        study.name, about, arms, study.measures, claims, study.problems, sections.of_sweep(study)
    )


def _known(arms: Sequence[Arm], measure: str) -> bool:
    return any(arm.interval(measure) is not None for arm in arms)


def _commands(runs: Sequence[run_lib.Run]) -> list[str]:
    return [str(start.get("command", "?")) for run in runs for start in run.starts]


def _page(
    title: str,
    about: str,
    arms: Sequence[Arm],
    measures: Sequence[str],
    claims: Sequence[Claim],
    problems: Sequence[str],
    last: Sequence[Section],
) -> Page:
    warnings = [*problems, *_unfinished(arms), *sections.unlike(arms)]
    shown = [Text(about, "lead")] if about else []
    shown += [Text(line) for line in words.outcome(arms, measures[0])] if arms else []
    verdicts = [(claim, _verdict(claim, arms)) for claim in claims]
    return Page(
        title,
        [*shown, *(Text(line, "warning") for line in dict.fromkeys(warnings))],
        [
            Section("Claims", _claims(verdicts, arms), summary=True),
            Section("The arms", list(_measured(arms, measures)), summary=True),
            Section("Differences to the first arm", _differences(arms, measures)),
            Section("Loss, balance and depth", list(sections.curves({a.name: a for a in arms}))),
            sections.loads(_few(arms, measures[0])),
            Section("Costs", _costs(arms)),
            Section("Fields of the arms", _fields(arms)),
            *last,
        ],
        _results(arms, measures, verdicts, warnings),
    )


def _few(arms: Sequence[Arm], measure: str) -> dict[str, Arm]:
    """The arms that are shown one by one: all of few, else the best."""
    chosen = [arm for arm in arms if any(sections.has_choices(run) for run in arm.runs.values())]
    if len(chosen) > FEW:
        chosen = arms_lib.ranked(chosen, measure)[:1]
    return {arm.name: arm for arm in chosen}


def _unfinished(arms: Sequence[Arm]) -> Iterator[str]:
    for arm in arms:
        if arm.until is not None:
            yield f"No run is finished: what counts is what they had come to at step {arm.until:,}."
            return
    for arm in arms:
        for seed, run in arm.runs.items():
            if not run.finished:
                yield f"{arm.name}, seed {seed}, is not counted: {run.so_far}."


def _verdict(claim: Claim, arms: Sequence[Arm]) -> Verdict:
    named = {arm.name: arm for arm in arms}
    if claim.better not in named or claim.worse not in named or claim.measure not in MEASURES:
        return Verdict(NOT_SETTLED, None)
    return arms_lib.compare(named[claim.better], named[claim.worse], claim.measure)


def _claims(verdicts: Sequence[tuple[Claim, Verdict]], arms: Sequence[Arm]) -> list[Part]:
    if not verdicts:
        return []
    rows = [
        (
            words.claim(claim.measure, claim.better, claim.worse),
            Badge(found.word, TONES[found.word]),
            words.evidence(found, claim.measure) + _unreached(claim, arms),
            claim.source,
        )
        for claim, found in verdicts
    ]
    note = (
        "Agrees: the whole 95% interval of the difference, paired by seed, is on the claimed side; "
        "disagrees: all of it on the other; else not settled. Each claim is taken by itself: by "
        "chance alone one interval in twenty misses the true difference."
    )
    return [
        Table(rows, ("claim", "verdict", "what the runs say", "who says so")),
        Text(note, "note"),
    ]


def _unreached(claim: Claim, arms: Sequence[Arm]) -> str:
    """How a claim's arms were compared that did not come to what is counted."""
    named = [arm for arm in arms if arm.name in (claim.better, claim.worse)]
    if claim.measure in MEASURES and any(arm.unreached(claim.measure) for arm in named):
        return " (where it was never reached, the last step counts)"
    return ""


def _measured(arms: Sequence[Arm], measures: Sequence[str]) -> Iterator[Part]:
    if not arms:
        return
    head = ["arm", "seeds", *(words.measure(name) for name in measures)]
    rows = [
        [arm.name, len(arm.counted), *(words.measured(arm, name) for name in measures)]
        for arm in arms
    ]
    yield Table(rows, head)
    yield Text(
        "Mean and 95% t-interval over seeds. Where some runs never came to what is counted in "
        "steps, their last step is taken for them: the true mean is larger (>).",
        "note",
    )
    for name in measures:
        if _known(arms, name):
            shown = {
                arm.name: (arm.interval(name), arm.numbers(name), arm.unreached(name))
                for arm in arms
            }
            about = MEASURES[name]
            yield Figure(
                _capital(about.title),
                intervals(about.title, shown, words.measure(name)),
                DOTS if name == measures[0] else "",
            )


def _differences(arms: Sequence[Arm], measures: Sequence[str]) -> list[Part]:
    if len(arms) < 2:
        return []
    first = arms[0]
    rows: list[list[Any]] = []
    for arm in arms[1:]:
        row: list[Any] = [arm.name]
        for name in measures:
            found = arms_lib.compare(arm, first, name)
            if found.gain is None:
                row.append("no number")
                continue
            tone = {AGREES: "good", DISAGREES: "bad"}.get(found.word)
            sign = MEASURES[name].goal == arms_lib.LESS
            gain = found.gain.flipped() if sign else found.gain
            said = mean_and_half(gain, signed=True)
            if found.bound:  # of steps, of which less is better
                bound = f"{BOUNDS[found.bound]} {gain.mean:+,.4g}"
                said = bound if gain.mean else "not known"
            row.append(Badge(said, tone) if tone else said)
        rows.append(row)
    note = (
        f"Arm minus {first.name}, paired by seed, with its 95% interval. Bold where the interval "
        "excludes zero; on the HTML page green is better, red is worse."
    )
    if any(arm.unreached(name) for arm in arms for name in measures):
        note += (
            " Where runs never came to what is counted in steps, the true difference is smaller "
            f"(<) or larger (>), or either (≈), and {words.LONGER}."
        )
    return [Table(rows, ["arm", *(words.measure(name) for name in measures)]), Text(note, "note")]


def _costs(arms: Sequence[Arm]) -> list[Part]:
    found = {}
    for arm in arms:
        cost = next(iter(arm.runs.values())).costs
        if cost is not None:
            found[arm.name] = cost
    if not found:
        return []
    names = [field.name for field in dataclasses.fields(costs.Costs)]
    rows = [[name, *(round(getattr(cost, n)) for n in names)] for name, cost in found.items()]
    head = ["arm", "parameters", "active", "training FLOPs per token", "KV bytes per token"]
    warned = [Text(_capital(line) + ".", "warning") for line in costs.mismatches(found)]
    matched = [Text(f"All arms are matched within {costs.TOLERANCE:.0%} in all four.", "note")]
    return [Table(rows, head), *(warned or (matched if len(found) > 1 else []))]


def _fields(arms: Sequence[Arm]) -> list[Part]:
    paths = list(dict.fromkeys(path for arm in arms for path in arm.fields))
    if not paths:
        return []

    def shown(arm: Arm, path: str) -> str:
        if path in arm.fields:
            return setting(arm.fields[path])
        base = flat(next(iter(arm.runs.values())).config)
        return f"{setting(base.get(path))} (as the base)"

    rows = [[arm.name, *(shown(arm, path) for path in paths)] for arm in arms]
    return [Table(rows, ["arm", *paths])]


def _results(
    arms: Sequence[Arm],
    measures: Sequence[str],
    verdicts: Sequence[tuple[Claim, Verdict]],
    warnings: Sequence[str],
) -> dict[str, Any]:
    return {
        "arms": {
            arm.name: {name: sections.in_numbers(arm, name) for name in measures} for arm in arms
        },
        "claims": [
            dataclasses.asdict(claim)
            | {"verdict": found.word, "gain": sections.plain(found.gain)}
            | {"seeds": found.seeds, "bound": found.bound}
            for claim, found in verdicts
        ],
        "warnings": list(warnings),
    }


def _capital(line: str) -> str:
    return line[:1].upper() + line[1:]
