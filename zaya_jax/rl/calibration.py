"""Before the first update: where each graded environment begins for the policy (eq 12 to 14).

The policy is asked `rl.curriculum.rounds` times in every environment, a group of sampled rollouts
each time; `curriculum.calibrate` chooses the difficulties and says where half are solved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zaya_jax.config.rl import RL
from zaya_jax.data.cache import atomic_path
from zaya_jax.infer.rsa import Ask
from zaya_jax.infer.rsa import settings as rsa
from zaya_jax.infer.rsa.generator import Chat
from zaya_jax.rl import scoring
from zaya_jax.rl.curriculum.calibrate import Calibrated, calibrate
from zaya_jax.rl.graded import Graded
from zaya_jax.rl.rewards.interface import Task
from zaya_jax.rl.rewards.score import Scorer

FILE = "calibration.json"
"""In the run directory: start and estimate of every environment, and what was seen of it."""
_TOLD = 8


def begin(
    graded: Graded,
    engine: scoring.Writes,
    chat: Chat,
    scorer: Scorer,
    section: RL,
    *,
    seed: int,
    folder: Path,
    say: Callable[[str], None],
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Calibrates all environments of a stage, and has its curriculum begin there.

    What a round came to is written down: a run that was stopped asks only what is missing.

    A difficulty that an environment has no task of, or none with a prompt of `rl.max_prompt`
    tokens, counts as one that is never solved. A group whose verifier failed says nothing.

    Args:
      graded: the curriculum; changed.
      engine: of the policy, with nothing under way.
      chat: of its model.
      scorer: judges.
      section: of the stage: rounds, group, budgets and sampling.
      seed: of all draws.
      folder: of the run; `FILE` is written there.
      say: tells a person something.
      stop: whether somebody wants an end, which comes after a round.

    Returns:
      Whether it is done; else the curriculum is what it was.
    """
    rounds, group = section.curriculum.rounds, section.group
    names = list(graded.curriculum.records)
    of = hashlib.sha256(json.dumps([names, group, seed, section.max_tokens]).encode()).hexdigest()
    known = read(folder)
    outcomes = known["outcomes"] if known.get("of") == of else []
    asked = 0

    def ask(questions: Sequence[tuple[str, int]]) -> list[int | None]:
        nonlocal asked
        asked += 1
        if asked <= len(outcomes):
            return outcomes[asked - 1]
        if stop():
            raise _Stopped
        say(f"calibration, round {asked} of {rounds}: {len(questions)} environments")
        tasks = [graded.at(name, difficulty, asked, seed) for name, difficulty in questions]
        right = _right(tasks, engine, chat, scorer, section, seed=seed * rounds + asked)
        outcomes.append(right)
        _write(folder, {"of": of, "outcomes": outcomes})
        return right

    try:
        found = calibrate(names, ask, rounds=rounds, group=group, seed=seed)
    except _Stopped:
        return False
    graded.begin({name: found[name].start for name in names})
    environments = {name: _record(found[name]) for name in names}
    _write(folder, {"of": of, "outcomes": outcomes, "environments": environments})
    for name in names[:_TOLD]:
        crossing = found[name].estimate
        say(
            f"{name} begins at difficulty {found[name].start}: half are solved at "
            f"{crossing.mu:.1f} ({crossing.low:.1f} to {crossing.high:.1f})"
        )
    if len(names) > _TOLD:
        starts = [found[name].start for name in names]
        say(f"... and {len(names) - _TOLD} more, in {FILE}: {np.mean(starts):.1f} on average")
    return True


def read(folder: Path) -> dict[str, Any]:
    """What is written of a run's calibration: `environments`, once it is done."""
    file = folder / FILE
    return json.loads(file.read_text()) if file.exists() else {}


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    with atomic_path(folder / FILE) as scratch:
        scratch.write_text(json.dumps(content, indent=2))


class _Stopped(Exception):
    """Somebody wants an end."""


def _right(
    tasks: Sequence[Task | None],
    engine: scoring.Writes,
    chat: Chat,
    scorer: Scorer,
    section: RL,
    seed: int,
) -> list[int | None]:
    """How many rollouts of a group for each task were right."""
    sampled = rsa.Sampling(temperature=1.0, min_p=section.min_p)
    asks, whose = [], []
    for place, task in enumerate(tasks):
        if task is None:
            continue
        messages = ({"role": "user", "content": task.prompt},)
        if len(chat.encode(messages)) > section.max_prompt:
            continue
        for number in range(section.group):
            key = np.random.SeedSequence((seed, place, number)).generate_state(1)
            asks.append(Ask(messages, section.max_tokens, sampled, seed=int(key[0]) >> 1))
            whose.append((place, task))
    if not asks:
        return [0] * len(tasks)
    samples = scoring.answer(engine, chat, asks)
    judged = scorer.score(
        [task.verifier for _, task in whose],
        [scoring.submission(task, one) for (_, task), one in zip(whose, samples, strict=True)],
    )
    rewards: list[list[float]] = [[] for _ in tasks]
    for (place, _), reward in zip(whose, judged.rewards, strict=True):
        rewards[place].append(float(reward))
    return [
        None if np.isnan(group).any() else sum(reward == 1 for reward in group)
        for group in rewards
    ]


def _record(found: Calibrated) -> dict[str, object]:
    known = found.estimate
    return {
        "start": found.start,
        "crossing": known.mu,
        "low": known.low,
        "high": known.high,
        "seen": [[d, right, tries] for d, right, tries in found.posterior.history],
    }
