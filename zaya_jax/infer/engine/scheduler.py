"""What runs in a step, and which pages it has: plain bookkeeping, without jax.

A sequence waits, is read chunk by chunk, decodes, and ends. Those that run hold pages for all that
they wrote. Rules, in the order in which a step applies them:

1. Who decodes gets pages for the tokens of this step, the oldest first. Where none is left the
   youngest that runs is parked: its pages go to the host's memory as they are, and come back as
   they were. Nothing is computed twice, and nothing comes out differently for it.
2. Who is parked comes back before anybody new begins, the oldest first.
3. Prompts are read, one after the other, up to the step's budget. A prompt is looked up in the
   pages that are known when its turn comes, so that of many with one beginning the first is read,
   and the others share its pages.

Chunks of a prompt have borders that depend on its length alone. A plan is carried out in this
order: park, restore, chunks, decode; what it says was written is taken as written.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections import deque
from typing import Any, NamedTuple

from zaya_jax.infer.engine.allocator import Allocator, Key, keys_of
from zaya_jax.infer.engine.options import Options


@dataclasses.dataclass(eq=False)
class Sequence:
    """A request from the scheduler's point of view.

    id: in order of arrival.
    tokens: of the prompt and of the completion so far.
    prompt: length of the prompt.
    most: tokens it may reach.
    stepwise: whether the host must see each token before the next.
    reads: whether it may begin with pages that others wrote.
    gives: whether others may share its pages.
    pages: held by it, in order.
    written: tokens whose keys, values and state its pages hold: all but the last while it decodes.
    shared: tokens of the prompt that were found in pages of others.
    keys: of its first full pages, as far as they were computed.
    kept: of its first pages, how many others know of.
    salt: pages are shared only with sequences of the same.
    saved: what its pages held, while it has none; the driver's.
    """

    id: int
    tokens: list[int]
    prompt: int
    most: int
    stepwise: bool = False
    reads: bool = True
    gives: bool = True
    pages: list[int] = dataclasses.field(default_factory=list)
    written: int = 0
    shared: int = 0
    keys: list[Key] = dataclasses.field(default_factory=list)
    kept: int = 0
    salt: bytes = b""
    saved: Any = None

    @property
    def decodes(self) -> bool:
        """Whether its prompt was read."""
        return self.written >= self.prompt

    @property
    def remaining(self) -> int:
        """Tokens that may still come."""
        return self.most - len(self.tokens)


class Chunk(NamedTuple):
    """A part of a prompt to read: tokens [start, start + length), in a program of `size` tokens and
    a table of `table` pages; whether the prompt ends with it."""

    sequence: Sequence
    start: int
    length: int
    size: int
    table: int
    last: bool


class Row(NamedTuple):
    """A sequence that decodes, and how many tokens it has room for in this step."""

    sequence: Sequence
    limit: int


class Move(NamedTuple):
    """Pages to copy to or from the host's memory."""

    sequence: Sequence
    pages: list[int]


@dataclasses.dataclass
class Plan:
    """What to do in a step, in this order. steps: most tokens that a row gets."""

    parked: list[Move] = dataclasses.field(default_factory=list)
    restored: list[Move] = dataclasses.field(default_factory=list)
    chunks: list[Chunk] = dataclasses.field(default_factory=list)
    rows: list[Row] = dataclasses.field(default_factory=list)
    steps: int = 1


class Scheduler:
    """Sequences and their pages.

    Attributes:
      waiting: not begun, in order of arrival.
      running: hold pages, in order of arrival.
      parked: begun, but without pages, in order of arrival.
      preemptions: how often a sequence was parked.
    """

    def __init__(self, options: Options, capacity: int, allocator: Allocator):
        """Args: capacity: tokens that a sequence may reach; one must fit into the pool."""
        if self._pages(capacity, options.page) > allocator.count - 1:
            raise ValueError(f"{capacity} tokens do not fit into {allocator.count - 1} pages")
        self.options, self.capacity, self.allocator = options, capacity, allocator
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.parked: list[Sequence] = []
        self.preemptions = 0

    @staticmethod
    def _pages(tokens: int, page: int) -> int:
        return -(-tokens // page)

    def pages_for(self, tokens: int) -> int:
        """Pages that hold so many tokens."""
        return self._pages(tokens, self.options.page)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.waiting or self.running or self.parked)

    def add(self, sequence: Sequence) -> None:
        """It waits for its turn."""
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """It has ended, wherever it stands; its pages are let go."""
        for where in (self.waiting, self.running, self.parked):
            if sequence in where:
                where.remove(sequence)
        self.allocator.release(sequence.pages)
        sequence.pages, sequence.saved = [], None

    def forget(self) -> None:
        """The weights were changed: nothing that was written before is shared any more."""
        self.allocator.forget()
        for sequence in (*self.running, *self.parked):
            sequence.gives = False

    def plan(self) -> Plan:
        """What to do in the next step; empty if nothing can be done."""
        plan = Plan()
        decoding = [sequence for sequence in self.running if sequence.decodes]
        plan.steps = self._steps(decoding)
        for sequence in decoding:
            if sequence.pages and (limit := self._room(sequence, plan)):  # else just parked
                plan.rows.append(Row(sequence, limit))
        if not plan.parked:
            self._restore(plan)
        self._read(plan)
        return plan

    def advance(self, sequence: Sequence, tokens: list[int], *, fed: int) -> None:
        """Tokens were chosen for it, and `fed` of its tokens were written on the way."""
        sequence.tokens.extend(tokens)
        sequence.written += fed
        if not self.options.batch_invariant:  # there, only prompts are shared
            self._keep(sequence)

    def _steps(self, decoding: list[Sequence]) -> int:
        """One token at a time where somebody is read or could begin meanwhile."""
        reading = len(decoding) < len(self.running)
        return 1 if reading or self._next() is not None else self.options.steps

    def _room(self, sequence: Sequence, plan: Plan) -> int:
        """Tokens that it has pages for in this step; 0 if it was parked."""
        # The host must see each token of one that is bound; the others need not wait for that.
        wanted = min(1 if sequence.stepwise else plan.steps, sequence.remaining)
        more = self.pages_for(sequence.written + wanted) - len(sequence.pages)
        if more > self.allocator.available:  # no more than the next token may cost others theirs
            more = self.pages_for(sequence.written + 1) - len(sequence.pages)
        while more > self.allocator.available:
            victim = self.running[-1]
            self._park(victim, plan)
            if victim is sequence:
                return 0
        sequence.pages += self.allocator.take(max(more, 0))
        return min(wanted, len(sequence.pages) * self.options.page - sequence.written)

    def _park(self, sequence: Sequence, plan: Plan) -> None:
        pages = sequence.pages[: self.pages_for(sequence.written)]
        plan.parked.append(Move(sequence, pages))
        self.running.remove(sequence)
        bisect.insort(self.parked, sequence, key=lambda other: other.id)
        self.allocator.release(sequence.pages)
        sequence.pages = []
        self.preemptions += 1

    def _restore(self, plan: Plan) -> None:
        while self.parked and len(self.running) < self.options.rows:
            sequence = self.parked[0]
            # What is not read yet of a prompt needs its pages too, as when it began.
            need = self.pages_for(max(sequence.written, sequence.prompt) + 1)
            if need + self._reserve() > self.allocator.available:
                return
            self.parked.pop(0)
            sequence.pages = self.allocator.take(need)
            bisect.insort(self.running, sequence, key=lambda other: other.id)
            plan.restored.append(Move(sequence, sequence.pages[: self.pages_for(sequence.written)]))

    def _reserve(self) -> int:
        """Pages that those who run will soon ask for: one each."""
        return len(self.running)

    def _read(self, plan: Plan) -> None:
        budget = self.options.prefill_tokens
        while budget > 0:
            reading = (sequence for sequence in self.running if not sequence.decodes)
            sequence = next(reading, None) or self._begin()
            if sequence is None:
                return
            chunk = self._chunk(sequence)
            plan.chunks.append(chunk)
            budget -= chunk.size

    def _begin(self) -> Sequence | None:
        """The next that waits, with pages for its prompt and a token; None if that cannot be."""
        known = self._next()
        if known is None:
            return None
        sequence = self.waiting.popleft()
        self.allocator.hold(known)
        need = self.pages_for(sequence.prompt + 1) - len(known)
        sequence.pages = known + self.allocator.take(need)
        sequence.kept = len(known)
        sequence.written = sequence.shared = len(known) * self.options.page
        bisect.insort(self.running, sequence, key=lambda other: other.id)
        return sequence

    def _next(self) -> list[int] | None:
        """Known pages with which the next that waits could begin now; None if it cannot."""
        if self.parked or not self.waiting or len(self.running) >= self.options.rows:
            return None
        sequence, allocator, page = self.waiting[0], self.allocator, self.options.page
        sequence.keys += [*keys_of(sequence.tokens, page, sequence.keys, sequence.salt)]
        known: list[int] = []
        if sequence.reads:
            # The last token of a prompt is always computed: its logits are wanted.
            known = allocator.find(sequence.keys[: (sequence.prompt - 1) // page])
            if self.options.batch_invariant:
                whole = self.options.chunks[-1] // page
                known = known[: len(known) // whole * whole]
        need = self.pages_for(sequence.prompt + 1) - len(known)
        idle = allocator.count_idle(known)  # to be held: then not to be had any more
        return known if need + self._reserve() <= allocator.available - idle else None

    def _chunk(self, sequence: Sequence) -> Chunk:
        start, left = sequence.written, sequence.prompt - sequence.written
        size = self.options.chunk_for(left)
        length = min(size, left)
        sequence.written += length
        if not self.options.batch_invariant or length == self.options.chunks[-1]:
            self._keep(sequence)
        table = self.options.table_for(start, size, self.capacity)
        return Chunk(sequence, start, length, size, table, length == left)

    def _keep(self, sequence: Sequence) -> None:
        """Makes its full pages known to others."""
        page, full = self.options.page, sequence.written // self.options.page
        if not sequence.gives or full <= sequence.kept:
            return
        tokens = sequence.tokens[: full * page]
        sequence.keys += [*keys_of(tokens, page, sequence.keys, sequence.salt)]
        for index in range(sequence.kept, full):
            self.allocator.keep(sequence.pages[index], sequence.keys[index])
        sequence.kept = full
