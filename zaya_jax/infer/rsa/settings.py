"""The numbers of Markovian RSA, and the report's choices of them (tables XII and XIII)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, get_args

from zaya_jax.answers import FORMATS, KINDS, Kind
from zaya_jax.data import aggregate
from zaya_jax.errors import UserError, hint

Selection = Literal["none", "majority", "aggregate", "verifier"]
SELECTIONS: tuple[Selection, ...] = get_args(Selection)
K = 1024


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the seed is each rollout's own. The report samples from the model as
    it is."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """A run of Markovian RSA; by default the one that the report recommends.

    T rounds of aggregation are T + 1 stages of N rollouts. Special cases: T = 0 is N independent
    rollouts; C = 1 lets each rollout go on from its own end (Delethink); tau = beta carries on the
    whole reasoning of rollouts (RSA).

    Attributes:
      population: N, rollouts of a stage.
      candidates: C, tails that an aggregation prompt shows, drawn without replacement.
      rounds: T.
      tail: tau, tokens of a tail.
      budget: beta, most tokens of a rollout.
      final_budget: of a rollout of the last stage, which is to end in an answer; None for beta.
      hybrid: PaCoRe: what finished is shown by its answer, not by the end of its reasoning. An
        answer is not cut, so the bound on prompts is that of the budget of what is shown.
      selection: what becomes of the last population. `none`: nothing, each of its answers counts
        as much (so the report scores). `majority`: the answer that most give. `aggregate`: one more
        rollout, over C tails of them. `verifier`: the one that a function likes best.
      kind: of answers, see `zaya_jax.answers.extract`.
      sampling: of all rollouts but that of `aggregate`.
      selection_temperature: of that one.
      template: a Jinja file instead of `aggregate.jinja`.
      seed: of all that is drawn.

    Raises:
      UserError: a number outside its range, or an unknown selection or kind.
    """

    population: int = 16
    candidates: int = 4
    rounds: int = 2
    tail: int = 4 * K
    budget: int = 16 * K
    final_budget: int | None = 40 * K
    hybrid: bool = False
    selection: Selection = "majority"
    kind: Kind = "auto"
    sampling: Sampling = Sampling()
    selection_temperature: float = 0.3
    template: str | None = None
    seed: int = 0

    def __post_init__(self):
        for name, least in (("population", 1), ("candidates", 1), ("rounds", 0), ("tail", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} = {getattr(self, name)}: expected at least {least}")
        for name in ("budget", "final_budget"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{name} = {value}: expected at least 1 token")
        if self.aggregates and self.candidates > self.population:
            raise UserError(
                f"candidates = {self.candidates} of population = {self.population}: a prompt shows "
                "different ones, so there must be as many"
            )
        if self.selection not in SELECTIONS:
            raise UserError(f"selection = {self.selection!r}{hint(self.selection, SELECTIONS)}")
        if self.kind not in KINDS:
            raise UserError(f"kind = {self.kind!r}{hint(self.kind, KINDS)}")
        if not 0 <= self.seed < 2**63:
            raise UserError(f"seed = {self.seed}: expected 0 <= seed < 2**63")

    @property
    def aggregates(self) -> bool:
        """Whether any prompt shows candidates."""
        return self.rounds > 0 or self.selection == "aggregate"

    @property
    def longest_shown(self) -> int:
        """Tokens that a prompt may show of one rollout, if it shows any."""
        if not self.hybrid:
            return self.tail
        shown = range(self.rounds + (self.selection == "aggregate"))  # the last one selects
        return max([self.tail, *map(self.budget_of, shown)])

    def budget_of(self, stage: int) -> int:
        """Most tokens of a rollout of stage 0..T, or of the aggregation that selects (T + 1)."""
        if stage < self.rounds or self.final_budget is None:
            return self.budget
        return self.final_budget

    @property
    def shown(self) -> aggregate.Settings:
        """How rollouts become prompts."""
        return aggregate.Settings(
            candidates=self.candidates,
            tail=self.tail,
            hybrid=self.hybrid,
            answer_format=FORMATS[self.kind],
            template=self.template,
        )


def _preset(rounds: int, population: int, candidates: int, budget: int, tail: int) -> Settings:
    return Settings(population, candidates, rounds, tail * K, budget * K)


PRESETS: Mapping[str, Settings] = {
    # Table XII, AIME'25 and HMMT'25.
    "delethink-8k": _preset(4, 16, 1, 8, 4),
    "8k-4k": _preset(2, 16, 4, 8, 4),
    "16k-4k": _preset(2, 16, 4, 16, 4),
    "40k-4k": _preset(2, 16, 4, 40, 4),
    "40k-8k": _preset(2, 16, 4, 40, 8),
    # Table XIII, APEX-shortlist; its first line is 8k-4k.
    "apex-high": _preset(8, 16, 4, 16, 4),
    "apex-xhigh": _preset(8, 32, 4, 32, 4),
}
"""The report's settings by name: budget and tail, or the table's own word."""
RECOMMENDED = "16k-4k"
