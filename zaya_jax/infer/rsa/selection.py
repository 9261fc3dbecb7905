"""From the last population to one answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from zaya_jax.answers import Kind, cluster, extract
from zaya_jax.infer.rsa.policy import Sample

Verifier = Callable[[Sequence[str]], Sequence[float | None]]
"""Scores responses, the higher the better; None where it failed."""


class Vote(NamedTuple):
    """An answer and who gives it.

    Attributes:
      answer: as the first of them writes it.
      voters: numbers of rollouts, ascending.
      finished: how many of them ended by themselves.
    """

    answer: str
    voters: tuple[int, ...]
    finished: int


class Chosen(NamedTuple):
    """What was selected.

    Attributes:
      answer: the answer, or None if no rollout gives one.
      rollout: the number of a rollout that gives it, N being the one that `aggregate` adds; None
        if there is none.
      votes: all answers, the winner first.
      scores: of the verifier, if one was asked.
    """

    answer: str | None
    rollout: int | None
    votes: tuple[Vote, ...]
    scores: tuple[float | None, ...] | None = None


def answers(samples: Sequence[Sample], kind: Kind) -> list[str | None]:
    """The answer of each rollout; None if it gives none."""
    return [extract(sample.text, kind, thinking=sample.thinking) for sample in samples]


def majority(
    samples: Sequence[Sample], kind: Kind, same: Callable[[str, str], bool] | None = None
) -> Chosen:
    """The answer that most rollouts give, by equivalence.

    Of as many, the one whose rollouts more often ended by themselves; then the one that came first.
    Its rollout is the first that ended by itself.
    """
    found = answers(samples, kind)
    votes = []
    for group in cluster(found, kind, same):
        finished = sum(samples[i].finished for i in group)
        votes.append(Vote(str(found[group[0]]), tuple(group), finished))
    votes.sort(key=lambda vote: (-len(vote.voters), -vote.finished, vote.voters[0]))
    if not votes:
        return Chosen(None, None, ())
    return Chosen(votes[0].answer, _first_finished(votes[0].voters, samples), tuple(votes))


def by_verifier(samples: Sequence[Sample], kind: Kind, verifier: Verifier) -> Chosen:
    """The rollout that a verifier likes best; of as good ones, the one whose answer more give."""
    votes = majority(samples, kind).votes
    support = {i: len(vote.voters) for vote in votes for i in vote.voters}
    scores = tuple(verifier([sample.text for sample in samples]))
    ranked = [(score, support.get(i, 0), -i) for i, score in enumerate(scores) if score is not None]
    if not ranked:
        return Chosen(None, None, votes, scores)
    best = -max(ranked)[2]
    return Chosen(answers([samples[best]], kind)[0], best, votes, scores)


def _first_finished(voters: Sequence[int], samples: Sequence[Sample]) -> int:
    return next((i for i in voters if samples[i].finished), voters[0])
