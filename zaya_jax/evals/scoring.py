"""From answers to what is said of them: rewards of every answer, and their summary over a set."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from zaya_jax.errors import UserError
from zaya_jax.evals import instructions, statistics
from zaya_jax.evals.record import Answers
from zaya_jax.rl.rewards.interface import Submission, Task
from zaya_jax.rl.rewards.score import Scorer
from zaya_jax.sandbox import require

SANDBOXED = ("humaneval", "livecodebench", "environments")
"""Modules whose verifiers run programs,"""
HARMLESS = "environments.rlve"
"""but this one."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A set's scores.

    Attributes:
      name: of the set.
      rewards: of every task's answers, from 0 to 1; 0 where the verifier failed.
      avg: avg@k.
      passed: pass@k by k, for k of 1, 2, 4 ... up to the fewest answers of a task.
      tokens: mean of an answer; None if nobody counted.
      cut: share of answers that reached the limit of tokens.
      failures: verifiers that failed, by kind; their answers count as wrong.
      messages: of these failures, one of each kind.
      more: numbers that only some sets have.
      overlaps: tasks whose prompts were found in the training data, if any was given.
      refused: by task, why the server would not answer; an entry for each such answer. They count
        as wrong.
    """

    name: str
    rewards: Mapping[str, Sequence[float]]
    avg: statistics.Score
    passed: Mapping[int, statistics.Score]
    tokens: float | None
    cut: float
    failures: Mapping[str, int]
    messages: Mapping[str, str]
    more: Mapping[str, float]
    overlaps: Sequence[str] = ()
    refused: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As plain data; `from_record` reads it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Result:
        """What `record` gave, also after JSON.

        Raises:
          UserError: it did not.
        """
        try:
            scores = {int(k): statistics.Score(**v) for k, v in record["passed"].items()}
            avg = statistics.Score(**record["avg"])
            return cls(**{**record, "avg": avg, "passed": scores})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"no scores of an evaluation: {error!r:.100}") from None


def score(name: str, tasks: Sequence[Task], answers: Answers, scorer: Scorer) -> Result:
    """Scores the answers to a set.

    Args:
      name: of the set.
      tasks: of the set.
      answers: at least one to each task.
      scorer: runs the verifiers.

    Raises:
      UserError: a task without an answer; programs are to be run and there is no sandbox.
    """
    unanswered = [task.name for task in tasks if not answers.get(task.name)]
    if unanswered:
        raise UserError(
            f"{name}: {len(unanswered)} of {len(tasks)} tasks have no answer, such as "
            f"{unanswered[0]!r}"
        )
    require_sandbox(tasks)
    given = [(task, answer) for task in tasks for _, answer in sorted(answers[task.name].items())]
    judged = [(task, answer) for task, answer in given if answer.refused is None]
    scores = scorer.score(
        [task.verifier for task, _ in judged],
        [Submission(answer.response, task.answer, task.metadata) for task, answer in judged],
    )
    rewards: dict[str, list[float]] = {task.name: [] for task in tasks}
    refused: dict[str, list[str]] = defaultdict(list)
    found = iter(scores.rewards)
    for task, answer in given:
        reward = next(found) if answer.refused is None else 0.0
        rewards[task.name].append(0.0 if math.isnan(reward) else float(reward))
        if answer.refused is not None:
            refused[task.name].append(answer.refused)
    lists = list(rewards.values())
    counted = [answer.tokens for _, answer in given if answer.tokens is not None]
    return Result(
        name=name,
        rewards=rewards,
        avg=statistics.avg_at_k(lists),
        passed={k: statistics.pass_at_k(lists, k) for k in powers_of_two(min(map(len, lists)))},
        tokens=math.fsum(counted) / len(counted) if counted else None,
        cut=sum(answer.finish == "length" for _, answer in given) / len(given),
        failures=dict(scores.failures),
        messages=dict(scores.messages),
        more=_more(tasks, answers),
        refused=dict(refused),
    )


def require_sandbox(tasks: Sequence[Task]) -> None:
    """Before anything is asked.

    Raises:
      UserError: programs are to be run, and there is no sandbox.
    """
    verifiers = {task.verifier for task in tasks}
    if any(part in name and HARMLESS not in name for name in verifiers for part in SANDBOXED):
        require()


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4 ... up to `most`."""
    return [1 << i for i in range(most.bit_length())]


def _more(tasks: Sequence[Task], answers: Answers) -> dict[str, float]:
    """What is published beside the main score: of IFEval and IFBench, the three other measures."""
    if not all(task.verifier.endswith("evals.instructions:verify") for task in tasks):
        return {}
    return instructions.measures(
        [
            (task.metadata, answer.response)
            for task in tasks
            for answer in answers[task.name].values()
        ]
    )
