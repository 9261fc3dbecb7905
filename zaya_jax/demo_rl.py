"""Teaches a tiny ZAYA sums: by demonstrations until they have no more to give, then by RL.

Then both models answer held-out tasks in three ways: once, by a vote, and with Markovian RSA, the
last two with as many tokens. Takes a quarter of an hour on two CPU cores and needs
requirements-rl.txt. A second call takes up the runs that are there."""

from __future__ import annotations

import dataclasses
import os
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from zaya_jax import config, options
from zaya_jax.config import rl as rl_config
from zaya_jax.config.rl import Scoring
from zaya_jax.errors import UserError

if TYPE_CHECKING:
    from zaya_jax.rl import scoring

FLAGS = flags.FLAGS
EXPERIMENT = Path(__file__).parents[1] / "experiments" / "rl" / "chain_sum.py"
FOLDER = "demo-rl"
TASKS, ROWS = 64, 64


def define_flags() -> None:
    """See `zaya_jax.options`."""
    flags.DEFINE_integer("tasks", TASKS, "held-out tasks to answer at the end", lower_bound=0)
    options.workdir(FOLDER)
    options.seed()
    options.json()


def main(argv: Sequence[str]) -> int:
    """Returns 0 when all of it was done, 128 + the signal's number when one stopped a stage."""
    del argv
    folder = Path(options.require("workdir"))
    sft = experiment("sft", options.FLAGS.seed)
    rl = experiment("rl", options.FLAGS.seed)
    rl = dataclasses.replace(rl, train=dataclasses.replace(rl.train, init_from=str(folder / "sft")))
    if FLAGS.tasks > rl.rl.heldout:
        raise UserError(f"--tasks={FLAGS.tasks}: only {rl.rl.heldout} are held out")
    from zaya_jax.rl import loop  # not above: `--help` needs no jax
    from zaya_jax.train import loop as training

    print("--- demonstrations ---", flush=True)
    taught = training.train(sft, folder / "sft")
    if taught.interrupted is not None:
        return 128 + int(taught.interrupted)
    print("\n--- reinforcement learning ---", flush=True)
    learnt = loop.run(rl, folder / "rl")
    if learnt.interrupted is not None:
        return 128 + int(learnt.interrupted)
    scores = {}
    for name in ("sft", "rl") if FLAGS.tasks else ():
        print(f"\n--- {name}: {FLAGS.tasks} held-out tasks, three ways ---", flush=True)
        scores[name] = answer(folder / name, rl.rl, FLAGS.tasks)
        for way, found in scores[name].items():
            told = f"{found.accuracy:6.1%} right, {found.decoded:6.0f} tokens a task"
            print(f"  {way:<24} {told}{found.warning}")
    page = write_report(folder / "rl", scores)
    print(f"\nruns:    {folder / 'sft'}, {folder / 'rl'}\nreport:  {page}\n\nNext:")
    print("  python launch.py rl --config=experiments/rl/chain_sum.py \\")
    print(f"      --config.train.init_from={folder / 'sft'} --config.rl.loss.advantage=grpo \\")
    print("      --workdir=runs/grpo")
    options.write_json(
        {
            "workdir": str(folder),
            "report": str(page),
            "heldout_accuracy": learnt.accuracy,
            "ways": {
                name: {way: found._asdict() for way, found in ways.items()}
                for name, ways in scores.items()
            },
        }
    )
    return 0


def experiment(stage: str, seed: int) -> config.Experiment:
    """A stage of `experiments/rl/chain_sum.py`; what is imitated goes on with attempts too, which
    are longer."""
    settings = runpy.run_path(os.fspath(EXPERIMENT))["get_config"](stage)
    settings.train.seed = seed
    if stage == "sft":
        settings.data.mixture = (
            ("zaya_jax.rl.demonstrations:chain_sum", 3.0),
            ("zaya_jax.rl.long_sums:short", 2.0),
        )
        settings.train.sequence_length *= 2
        settings.train.batch_size //= 2
    return config.freeze(settings)


WAYS = {
    "one rollout": Scoring(population=1),
    "vote of 8": Scoring(population=8),
    "RSA, T=1, N=4, C=2": Scoring(
        population=4,
        candidates=2,
        rounds=1,
        tail=48,
        template=str(Path(__file__).parent / "rl" / "long_sums.jinja"),
    ),
}
"""How the held-out tasks are answered in the end, sampled at temperature 1."""


def answer(folder: Path, section: rl_config.RL, tasks: int) -> dict[str, scoring.Scored]:
    """Answers the first held-out tasks of a stage with the model of a run, by way."""
    from zaya_jax.rl import scoring
    from zaya_jax.rl.questions import Questions

    asked = Questions(section.tasks, heldout=section.heldout, seed=0).heldout[:tasks]
    sets = {name: scoring.Set(asked, way, section.max_tokens) for name, way in WAYS.items()}
    return dict(
        scoring.score_run(folder, sets, rows=ROWS, seconds=section.verifier_seconds)
    )


def write_report(folder: Path, scores: dict[str, dict[str, scoring.Scored]]) -> Path:
    """The page of the RL run, with the ways of answering beside it."""
    from zaya_jax.report import page, run

    tables: dict[str, dict[str, Any]] = {
        f"Held-out tasks, answered by {name}": {
            way: f"{found.accuracy:.1%} right, {found.decoded:.0f} tokens a task"
            for way, found in ways.items()
        }
        for name, ways in scores.items()
    }
    return page.write(run.read(folder), folder / "report.html", tables)
