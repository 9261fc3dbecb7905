"""The rounds of Markovian RSA (report, section on test-time compute), over any policy.

    stage 0:      N rollouts of the problem
    stage 1..T:   each of N prompts shows C tails of tau tokens of the stage before, drawn without
                  replacement, and is answered by a new rollout
    then:         an answer is selected, or the answers of stage T are all there is

Everything that is drawn comes from the seed, the stage and the number of the rollout, so a run does
not depend on the order in which a policy works, nor on being interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from zaya_jax.data import aggregate
from zaya_jax.data.tokenizer import Tokenizer
from zaya_jax.errors import UserError
from zaya_jax.infer.rsa import prompts, selection
from zaya_jax.infer.rsa.accounting import StageCost, stage_cost
from zaya_jax.infer.rsa.policy import Ask, Message, Policy, Sample
from zaya_jax.infer.rsa.prompts import Planned, plan
from zaya_jax.infer.rsa.selection import Chosen, Verifier
from zaya_jax.infer.rsa.settings import Settings
from zaya_jax.infer.rsa.trace import Trace


class Observer(Protocol):
    """Is told what happens, as it happens."""

    def begin(self, stage: int, planned: Sequence[Planned]) -> None: ...

    def write(self, number: int, text: str) -> None: ...

    def end(self, number: int, sample: Sample) -> None: ...

    def select(self, chosen: Chosen) -> None: ...


class Silent:
    """An observer that does nothing."""

    def begin(self, stage: int, planned: Sequence[Planned]) -> None: ...

    def write(self, number: int, text: str) -> None: ...

    def end(self, number: int, sample: Sample) -> None: ...

    def select(self, chosen: Chosen) -> None: ...


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run gave.

    Attributes:
      stages: the populations of stages 0..T, and the rollout that selected, if one did.
      shown: for each of their rollouts, which ones of the stage before its prompt showed.
      answers: of the last population, one of each rollout; None where it gives none. A score is
        the mean of their correctness.
      chosen: the answer that was selected; with `selection: none` there are only its votes.
      costs: of each stage.
    """

    stages: tuple[tuple[Sample, ...], ...]
    shown: tuple[tuple[tuple[int, ...], ...], ...]
    answers: tuple[str | None, ...]
    chosen: Chosen
    costs: tuple[StageCost, ...]

    @property
    def decoded(self) -> int:
        """D(q): all newly decoded tokens."""
        return sum(cost.decoded for cost in self.costs)

    def as_json(self) -> dict[str, Any]:
        """The whole run as plain data."""
        return {
            "answer": self.chosen.answer,
            "rollout": self.chosen.rollout,
            "votes": [vote._asdict() for vote in self.chosen.votes],
            "scores": self.chosen.scores,
            "answers": self.answers,
            "decoded": self.decoded,
            "costs": [cost._asdict() | {"mean": cost.mean} for cost in self.costs],
            "stages": [
                [
                    {"shown": shown, **dataclasses.asdict(sample)}
                    for shown, sample in zip(picks, samples, strict=True)
                ]
                for picks, samples in zip(self.shown, self.stages, strict=True)
            ],
        }


def solve(
    policy: Policy,
    conversation: Sequence[Message],
    settings: Settings,
    tokenizer: Tokenizer,
    *,
    trace: Trace | None = None,
    observer: Observer | None = None,
    verifier: Verifier | None = None,
    same: Callable[[str, str], bool] | None = None,
) -> Result:
    """Answers the last message of a conversation.

    Args:
      policy: writes rollouts.
      conversation: messages, the last one the user's.
      settings: the run's numbers.
      tokenizer: the policy's; it counts the tokens of tails.
      trace: holds rollouts of an earlier start of this run, and gets the new ones.
      observer: is told what happens.
      verifier: for `selection: verifier`.
      same: compares answers in a vote, instead of `zaya_jax.answers.equivalent`.

    Raises:
      UserError: a conversation that does not end with text of the user's; `selection: verifier`
        without one; what the policy raises.
    """
    prompts.check(conversation)
    if settings.selection == "verifier" and verifier is None:
        raise UserError("selection = 'verifier' needs a verifier")
    watcher = observer or Silent()
    stages: list[tuple[Sample, ...]] = []
    shown: list[tuple[tuple[int, ...], ...]] = []

    def run(stage: int) -> tuple[Sample, ...]:
        before = stages[-1] if stages else ()
        planned = plan(stage, before, conversation, settings, tokenizer)
        watcher.begin(stage, planned)
        stages.append(_generate(policy, stage, planned, trace, watcher))
        shown.append(tuple(item.shown for item in planned))
        return stages[-1]

    for stage in range(settings.rounds + 1):
        population = run(stage)
    answers = tuple(selection.answers(population, settings.kind))
    chosen = selection.majority(population, settings.kind, same)
    if settings.selection == "aggregate":
        (given,) = selection.answers(run(settings.rounds + 1), settings.kind)
        if given is not None:  # else the vote stands
            chosen = chosen._replace(answer=given, rollout=len(population))
    elif settings.selection == "verifier" and verifier is not None:
        chosen = selection.by_verifier(population, settings.kind, verifier)
    elif settings.selection == "none":
        chosen = Chosen(None, None, chosen.votes)
    watcher.select(chosen)
    costs = tuple(stage_cost(samples) for samples in stages)
    return Result(tuple(stages), tuple(shown), answers, chosen, costs)


def about(
    conversation: Sequence[Message], settings: Settings, model: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides a run's rollouts, for its trace.

    How an answer is selected is no part of it: a run may be taken up to select in another way.

    Args:
      model: what is asked, and how: a checkpoint, hashes of tokenizer and chat template, and
        whatever else decides the numbers, such as how many rollouts are computed at once.

    Raises:
      UserError: the template of the aggregation prompt cannot be read.
    """
    fields = dataclasses.asdict(settings)
    del fields["selection"]
    try:
        template = Path(settings.template or aggregate.PROMPT).read_bytes()
    except OSError as error:
        raise UserError(f"--template={settings.template}: {error.strerror}") from error
    fields["template"] = hashlib.sha256(template).hexdigest()  # not where it lies: what it says
    return {**fields, "conversation": [dict(m) for m in conversation], "model": dict(model)}


def _generate(
    policy: Policy,
    stage: int,
    planned: Sequence[Planned],
    trace: Trace | None,
    watcher: Observer,
) -> tuple[Sample, ...]:
    """The samples of a stage, of which a trace may know some already."""
    known = trace.known if trace is not None else {}
    samples: dict[int, Sample] = {
        i: known[stage, i] for i in range(len(planned)) if (stage, i) in known
    }
    for i, sample in samples.items():
        watcher.end(i, sample)
    missing = [i for i in range(len(planned)) if i not in samples]

    def done(place: int, sample: Sample) -> None:
        i = missing[place]
        if sample.tokens > planned[i].ask.max_tokens:
            raise ValueError(
                f"the policy decoded {sample.tokens} tokens of at most {planned[i].ask.max_tokens}"
            )
        if trace is not None:
            trace.add(stage, i, planned[i].shown, sample)
        samples[i] = sample
        watcher.end(i, sample)

    if missing:
        asks: list[Ask] = [planned[i].ask for i in missing]
        policy(asks, done, lambda place, text: watcher.write(missing[place], text))
    if len(samples) < len(planned):
        raise ValueError(f"the policy answered {len(samples)} of {len(planned)} asks")
    return tuple(samples[i] for i in range(len(planned)))
