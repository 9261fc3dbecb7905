"""Takes a model through the stages of a cascade, and scores it on every set after each.

The file of --config has STAGES (name to verb, in order), SETS, and a get_config() of both. Every
stage is a command of its own, which is printed; a call that was stopped goes on where it was, and a
stage that is done is not done again. At the end there is a page: reward, accuracy, length,
staleness, canaries, difficulty and entropy of each stage, and the scores before and after it."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from zaya_jax import config, options
from zaya_jax.errors import UserError
from zaya_jax.train.progress import clock

if TYPE_CHECKING:
    from zaya_jax.report.content import Page

FLAGS = flags.FLAGS
ROOT = Path(__file__).parents[1]
CASCADE = "experiments/cascade/tiny.py"
ROWS = 64
"""Answers at a time."""
SCORES = "scores"
"""In the working directory: a file for each policy."""


def define_flags() -> None:
    """See `zaya_jax.options`."""
    flags.DEFINE_string("cascade", CASCADE, "file with STAGES, SETS and get_config(NAME)")
    flags.DEFINE_string("until", None, "the last stage to run; by default all")
    options.workdir("runs/cascade")
    options.seed()
    options.json()


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a cascade.

    Attributes:
      name: of its folder too.
      verb: of `launch.py`: train, rl, reward-model.
      after: the policy that it starts from; None for the first.
      rewards: the reward model that it is told to take, if one was trained before it.
    """

    name: str
    verb: str
    after: str | None
    rewards: str | None


def stages_of(verbs: Mapping[str, str]) -> list[Stage]:
    """The stages in order: each after the last policy, which a reward model is not."""
    found: list[Stage] = []
    policy = rewards = None
    for name, verb in verbs.items():
        found.append(Stage(name, verb, policy, rewards if verb == "rl" else None))
        if verb == "reward-model":
            rewards = name
        else:
            policy = name
    return found


def main(argv: Sequence[str]) -> int:
    """Returns 0 when all was done, and the exit status of a stage that did not end otherwise."""
    del argv
    folder = Path(options.require("workdir"))
    module = _module(FLAGS.cascade)
    stages, sets = stages_of(module["STAGES"]), list(module["SETS"])
    if FLAGS.until is not None:
        names = [stage.name for stage in stages]
        if FLAGS.until not in names:
            raise UserError(f"--until={FLAGS.until}: the stages are {', '.join(names)}")
        stages = stages[: names.index(FLAGS.until) + 1]
    scores: dict[str, dict[str, Any]] = {}
    for number, stage in enumerate(stages, 1):
        print(f"--- {stage.name} ({number} of {len(stages)}) ---", flush=True)
        command = command_of(stage, folder, module["get_config"](stage.name))
        print("python " + " ".join(command), flush=True)
        began = time.monotonic()
        if code := execute(command):
            return code
        print(f"{stage.name} took {clock(time.monotonic() - began)}", flush=True)
        if stage.verb != "reward-model":
            scores[stage.name] = score(folder, stage.name, sets, module["get_config"])
    page = write_page(folder, stages, sets, scores)
    print(f"report: {page}")
    options.write_json({"workdir": str(folder), "report": str(page), "scores": scores})
    return 0


def execute(command: Sequence[str]) -> int:
    """Its exit status. A stage that is told to stop saves first: it is waited for."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the terminal has told the stage too
            continue


def _module(file: str) -> dict[str, Any]:
    path = _file(file)
    if not path.is_file():
        raise UserError(f"--cascade={file}: no such file")
    found = runpy.run_path(os.fspath(path))
    for name in ("STAGES", "SETS", "get_config"):
        if name not in found:
            raise UserError(f"--cascade={file}: it has no {name}")
    return found


def _file(name: str) -> Path:
    """As it is typed, or as it lies in the repository, where stages run."""
    return Path(name).absolute() if Path(name).is_file() else ROOT / name


def command_of(stage: Stage, folder: Path, settings: Any) -> list[str]:
    """What one would type behind `python` to run a stage."""
    file = os.path.relpath(_file(FLAGS.cascade), ROOT)
    command = ["launch.py", stage.verb, f"--config={file}:{stage.name}"]
    command.append(f"--workdir={(folder / stage.name).absolute()}")
    command.append(f"--config.train.seed={FLAGS.seed}")
    if stage.after is not None:
        command.append(f"--config.train.init_from={(folder / stage.after).absolute()}")
    if stage.rewards is not None and settings.rl.reward_model:
        command.append(f"--config.rl.reward_model={(folder / stage.rewards).absolute()}")
    return command


def score(folder: Path, policy: str, sets: Sequence[str], get_config: Any) -> dict[str, Any]:
    """Answers the held-out tasks of every set; what these weights answered before is read.

    Returns:
      By set: accuracy, its 95% interval, tasks, tokens of an answer, D(q) and failures.
    """
    from zaya_jax.data.cache import atomic_path
    from zaya_jax.evals import statistics
    from zaya_jax.load import pinned
    from zaya_jax.rl import scoring
    from zaya_jax.rl.questions import Questions

    file = folder / SCORES / f"{policy}.json"
    sections = {name: config.freeze(get_config(name)).rl for name in sets}
    plain = {name: dataclasses.asdict(section) for name, section in sections.items()}
    of = json.loads(json.dumps({"checkpoint": pinned(folder / policy).name, "sets": plain}))
    if file.exists() and (there := json.loads(file.read_text())).get("of") == of:
        return there["scores"]
    print(f"scoring {policy} on {', '.join(sets)} ...", flush=True)
    asked = {
        name: scoring.Set(
            Questions(section.tasks, heldout=section.heldout, seed=0).heldout,
            section.scoring,
            section.max_tokens,
        )
        for name, section in sections.items()
    }
    seconds = max(section.verifier_seconds for section in sections.values())
    found = {}
    for name, result in scoring.score_run(folder / policy, asked, rows=ROWS, seconds=seconds):
        tasks = len(asked[name].tasks)
        low, high = statistics.wilson(result.accuracy, tasks, 1.96)
        found[name] = result._asdict() | {"low": low, "high": high, "tasks": tasks}
        said = f"{result.accuracy:6.1%}  ({low:.0%} to {high:.0%}){result.warning}"
        print(f"  {name:<12} {said}", flush=True)
    file.parent.mkdir(exist_ok=True)
    with atomic_path(file) as scratch:
        scratch.write_text(json.dumps({"of": of, "scores": found}, indent=2))
    return found


def write_page(
    folder: Path, stages: Sequence[Stage], sets: Sequence[str], scores: Mapping[str, Any]
) -> Path:
    """The page of a cascade, and a page for each of its runs."""
    from zaya_jax.report import page, run

    runs = {stage.name: run.read(folder / stage.name) for stage in stages}
    for found in runs.values():
        page.write(found, found.folder / "report.html")
    return page.save(of(stages, sets, scores, runs), folder / "report.html")


def of(
    stages: Sequence[Stage],
    sets: Sequence[str],
    scores: Mapping[str, Any],
    runs: Mapping[str, Any],
) -> Page:
    """The page: scores by stage, as the report's table IX has them, and what each stage did."""
    from zaya_jax.report import content
    from zaya_jax.report import stage as stages_page

    policies = [stage for stage in stages if stage.name in scores]
    rows = [
        [stage.name, *(said(scores[stage.name][name]) for name in sets)] for stage in policies
    ]
    moved = [
        [stage.name, *(change(scores[stage.after][n], scores[stage.name][n]) for n in sets)]
        for stage in policies
        if stage.after is not None
    ]
    sections = [
        content.Section(
            "Scores after each stage",
            [
                content.Table(rows, ["stage", *sets]),
                content.Text(
                    "Share of the held-out tasks that were answered right, with its 95% interval "
                    "(Wilson); how each set is answered is `rl.scoring` of its config.",
                    "note",
                ),
            ],
            summary=True,
        ),
        content.Section("What each stage changed", [content.Table(moved, ["stage", *sets])]),
    ]
    for stage in stages:
        found = runs[stage.name]
        if not stages_page.is_stage(found):
            continue
        for section in stages_page.sections(found):
            title = f"{stage.name}: {section.title[:1].lower()}{section.title[1:]}"
            sections.append(dataclasses.replace(section, title=title))
    first, last = policies[0].name, policies[-1].name
    lead = "; ".join(
        f"{name} {scores[first][name]['accuracy']:.0%} to {scores[last][name]['accuracy']:.0%}"
        for name in sets
    )
    return content.Page(f"A cascade of {len(stages)} stages", [content.Text(lead, "lead")],
                        sections, {"scores": dict(scores)})  # fmt: skip


def said(score: Mapping[str, Any]) -> str:
    """A score as a cell of the table."""
    return f"{score['accuracy']:.1%} ({score['low']:.0%} to {score['high']:.0%})"


def change(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """A difference as a cell of the table, in points; in brackets if the intervals overlap."""
    points = f"{100 * (after['accuracy'] - before['accuracy']):+.1f}"
    apart = after["low"] > before["high"] or after["high"] < before["low"]
    return points if apart else f"[{points}]"
