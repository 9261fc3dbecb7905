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
from typing import Any, NamedTuple

from absl import flags

from zaya_jax import config, options
from zaya_jax.errors import UserError

FLAGS = flags.FLAGS
EXPERIMENT = Path(__file__).parents[1] / "experiments" / "rl" / "chain_sum.py"
FOLDER = "demo-rl"
TASKS = 32
POPULATION, CANDIDATES, TAIL = 4, 2, 48
"""N, C and tau of Markovian RSA, which has one round here; the vote has 2 N rollouts."""


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
        scores[name] = answer(folder / name, rl, FLAGS.tasks)
        for way, found in scores[name].items():
            print(f"  {way:<24} {found.right:6.1%} right, {found.decoded:6.0f} tokens a task")
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
    """A stage of `experiments/rl/chain_sum.py`."""
    settings = runpy.run_path(os.fspath(EXPERIMENT))["get_config"](stage)
    settings.train.seed = seed
    return config.freeze(settings)


class Score(NamedTuple):
    """right: share of the tasks. decoded: D(q), mean of the tasks."""

    right: float
    decoded: float


def answer(folder: Path, stage: config.Experiment, tasks: int) -> dict[str, Score]:
    """Answers the first held-out tasks of a stage with the model of a run, by way."""
    from zaya_jax.infer.rsa import Settings, solve
    from zaya_jax.infer.rsa.generator import Chat, GeneratorPolicy, capacity
    from zaya_jax.load import load
    from zaya_jax.rl.questions import Questions
    from zaya_jax.rl.rewards.interface import Submission
    from zaya_jax.rl.rewards.score import Scorer
    from zaya_jax.train.progress import Progress

    loaded = load(folder)
    chat, tokenizer = Chat(loaded), loaded.require_tokenizer()
    section = stage.rl
    asked = Questions(section.tasks, heldout=section.heldout, seed=0).heldout[:tasks]
    rsa = Settings(
        population=POPULATION,
        candidates=CANDIDATES,
        rounds=1,
        tail=TAIL,
        budget=section.max_tokens,
        final_budget=None,
        kind="answer",
    )
    vote = dataclasses.replace(rsa, population=2 * POPULATION, rounds=0)
    conversations = [({"role": "user", "content": task.prompt},) for task in asked]
    room = max(
        capacity(conversation, settings, chat, loaded.model.context_length)
        for conversation in conversations
        for settings in (rsa, vote)
    )
    policy = GeneratorPolicy(loaded, chat, batch=2 * POPULATION, capacity=room)
    progress = Progress(2 * len(asked))
    given: dict[str, list[tuple[str | None, int]]] = {"one rollout": [], "vote": [], "RSA": []}
    for i, conversation in enumerate(conversations):
        seeded = dataclasses.replace(vote, seed=i)
        voted = solve(policy, conversation, seeded, tokenizer)
        given["one rollout"].append((voted.answers[0], voted.stages[0][0].tokens))
        given["vote"].append((voted.chosen.answer, voted.decoded))
        progress.draw(f"task {i + 1}/{len(asked)}")
        solved = solve(policy, conversation, dataclasses.replace(rsa, seed=i), tokenizer)
        given["RSA"].append((solved.chosen.answer, solved.decoded))
    with Scorer(seconds=section.verifier_seconds) as scorer:
        found = {}
        for way, answers in given.items():
            rewards = scorer.score(
                [task.verifier for task in asked],
                [
                    Submission(f"<answer>{text}</answer>", task.answer, task.metadata)
                    for task, (text, _) in zip(asked, answers, strict=True)
                ],
            ).rewards
            decoded = sum(tokens for _, tokens in answers) / len(answers)
            found[NAMES[way]] = Score(float((rewards == 1).mean()), decoded)
    return found


NAMES = {
    "one rollout": "one rollout",
    "vote": f"vote of {2 * POPULATION}",
    "RSA": f"RSA, T=1, N={POPULATION}, C={CANDIDATES}",
}
"""What a way is called on the page."""


def write_report(folder: Path, scores: dict[str, dict[str, Score]]) -> Path:
    """The page of the RL run, with the ways of answering beside it."""
    from zaya_jax.report import page, run

    tables: dict[str, dict[str, Any]] = {
        f"Held-out tasks, answered by {name}": {
            way: f"{found.right:.1%} right, {found.decoded:.0f} tokens a task"
            for way, found in ways.items()
        }
        for name, ways in scores.items()
    }
    return page.write(run.read(folder), folder / "report.html", tables)
