"""A run as it happens, in a terminal: stages, rollouts and the answers that they come to.

What a model writes is shown without control characters: they could say anything to a terminal.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from typing import TextIO

from zaya_jax.infer.rsa import selection
from zaya_jax.infer.rsa.accounting import stage_cost
from zaya_jax.infer.rsa.policy import Sample
from zaya_jax.infer.rsa.prompts import Planned
from zaya_jax.infer.rsa.selection import Chosen, Vote
from zaya_jax.infer.rsa.settings import Settings

WAITING, WRITING, FINISHED, CUT = "·", "▸", "●", "○"
LEGEND = f"{WAITING} waiting  {WRITING} writing  {FINISHED} finished  {CUT} cut at its budget"
PATIENCE = 0.1
"""Seconds between two pictures."""
MOST_ANSWERS = 5


class View:
    """An observer that draws; on what is no terminal it writes a line for each rollout."""

    def __init__(self, settings: Settings, out: TextIO, *, live: bool | None = None):
        """Args:
        settings: the run's.
        out: where to draw.
        live: whether to draw over what was drawn; None asks `out`.
        """
        self._settings, self._out = settings, out
        self._live = out.isatty() if live is None else live
        self._stage = -1
        self._marks: list[str] = []
        self._samples: dict[int, Sample] = {}
        self._written: dict[int, int] = {}
        self._drawn, self._last = 0, 0.0
        self._decoded = 0
        s = settings
        self._line(
            f"Markovian RSA: N = {s.population} rollouts, C = {s.candidates} tails of "
            f"{s.tail} tokens, T = {s.rounds} rounds, budget {s.budget}"
            + (f", {s.final_budget} in the last" if s.final_budget else "")
        )
        if self._live:
            self._line(LEGEND)

    def begin(self, stage: int, planned: Sequence[Planned]) -> None:
        self._stage, self._drawn = stage, 0
        self._marks = [WAITING] * len(planned)
        self._samples, self._written = {}, {}
        self._draw(now=True)

    def write(self, number: int, text: str) -> None:
        self._marks[number] = WRITING
        self._written[number] = self._written.get(number, 0) + len(text)
        self._draw()

    def end(self, number: int, sample: Sample) -> None:
        self._marks[number] = FINISHED if sample.finished else CUT
        self._samples[number] = sample
        self._decoded += sample.tokens
        if self._live:
            self._draw(now=True)
        else:
            answer = selection.answers([sample], self._settings.kind)[0]
            self._line(
                f"{self._name()}, rollout {number}: {sample.tokens} tokens, {sample.finish}"
                + (f", answer {printable(answer)}" if answer is not None else ", no answer")
            )
        if len(self._samples) == len(self._marks) and not self._live:
            for line in self._picture():
                self._line(line)

    def select(self, chosen: Chosen) -> None:
        self._line(f"D(q) = {self._decoded:,} decoded tokens")
        if self._settings.selection != "none":
            answer = "none was given" if chosen.answer is None else printable(chosen.answer, 400)
            self._line(f"answer ({self._settings.selection}): {answer}")

    def _name(self) -> str:
        if self._stage > self._settings.rounds:
            return "selection"
        return f"stage {self._stage} of {self._settings.rounds}"

    def _picture(self) -> list[str]:
        samples = [self._samples[i] for i in sorted(self._samples)]
        lines = [f"{self._name()}  {''.join(self._marks)}  {len(samples)}/{len(self._marks)}"]
        if samples:
            cost = stage_cost(samples)
            lines[0] += (
                f"  {cost.decoded:,} tokens, mean {cost.mean:,.0f}; "
                f"longest prompt {cost.longest_prompt:,}"
            )
        elif self._written:
            lines[0] += f"  {sum(self._written.values()):,} characters so far"
        votes = selection.majority(samples, self._settings.kind).votes
        silent = len(samples) - sum(len(vote.voters) for vote in votes)
        lines += [f"    {_bar(vote)}" for vote in votes[:MOST_ANSWERS]]
        if more := votes[MOST_ANSWERS:]:
            lines.append(f"    and {len(more)} more answers of {sum(len(v.voters) for v in more)}")
        if silent:
            lines.append(f"    no answer: {silent}")
        return lines

    def _draw(self, *, now: bool = False) -> None:
        moment = time.monotonic()
        if not self._live or not (now or moment - self._last > PATIENCE):
            return
        self._last = moment
        width = shutil.get_terminal_size().columns
        lines = [line[: width - 1] for line in self._picture()]
        up = f"\x1b[{self._drawn}F\x1b[J" if self._drawn else ""
        self._out.write(up + "\n".join(lines) + "\n")
        self._out.flush()
        self._drawn = len(lines)

    def _line(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


def printable(text: str, longest: int = 48) -> str:
    """One line of what a model wrote, without anything that a terminal would obey."""
    text = " ".join(text.split())
    text = "".join(c if c.isprintable() else "\ufffd" for c in text)
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _bar(vote: Vote) -> str:
    return f"{printable(vote.answer):<24}  {'▇' * len(vote.voters)} {len(vote.voters)}"
