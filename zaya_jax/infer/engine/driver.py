"""The engine: requests in, events out, step by step.

`Engine` turns the scheduler's plans into calls of the runner, and what those choose into events. It
is synchronous and has no clock and no threads of its own: whoever serves or trains calls `step` in
a loop.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np

from pallas_kernels.grouped_matmul.xla import FEW
from zaya_jax.errors import UserError
from zaya_jax.infer import request as plain
from zaya_jax.infer.engine import programs
from zaya_jax.infer.engine.allocator import Allocator
from zaya_jax.infer.engine.grammar import Compiled, Constraint, Grammars, Matcher
from zaya_jax.infer.engine.live import Live
from zaya_jax.infer.engine.options import Options
from zaya_jax.infer.engine.request import Best, Event, Request, Result, Token
from zaya_jax.infer.engine.runner import Runner
from zaya_jax.infer.engine.scheduler import Chunk, Row, Scheduler
from zaya_jax.load import Loaded


@dataclasses.dataclass(frozen=True)
class Load:
    """How busy the engine is.

    waiting, running, parked: requests.
    pages, pages_free, pages_idle: of the pool; idle ones keep prefixes and can be had.
    preemptions: requests that were parked, so far.
    prompt_tokens, cached_tokens: read so far, and of these found in the prefix cache.
    completion_tokens: chosen so far.
    version: of the weights.
    """

    waiting: int
    running: int
    parked: int
    pages: int
    pages_free: int
    pages_idle: int
    preemptions: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    version: int


class Engine:
    """Continuous batching over a pool of pages.

    `add` and `cancel` may be called from any thread; everything else belongs to the one that calls
    `step`.

    Attributes:
      options: as given.
      version: of the weights; 0 at first, one more with every `swap`.
    """

    def __init__(self, loaded: Loaded, options: Options | None = None):
        """Args:
          loaded: the network; its layers must be in the form `unroll`. Its arrays are used as they
            are where they have the right dtype, and must not be donated to anything.
          options: `Options()` by default.

        Raises:
          UserError: options that do not fit together or the model.
        """
        self.options, self.version = options or Options(), 0
        # Up to so many choices of experts in a step, all are computed in tiles of one shape.
        most = FEW // loaded.model.router.top_k
        if self.options.batch_invariant and self.options.rows > most:
            raise UserError(
                f"engine: rows = {self.options.rows} with batch_invariant: expected at most "
                f"{most}, for model.router.top_k = {loaded.model.router.top_k}"
            )
        self._runner = Runner(loaded, self.options)
        allocator = Allocator(self._runner.pages)
        self._scheduler = Scheduler(self.options, self._runner.capacity, allocator)
        self._live: dict[int, Live] = {}
        self._inbox: deque[Live] = deque()
        self._cancelled: deque[int] = deque()
        self._ids = itertools.count()
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = 0

    @property
    def loaded(self) -> Loaded:
        """The network, its parameters in the dtypes in which they are used."""
        return self._runner.loaded

    @property
    def capacity(self) -> int:
        """Tokens that a request may reach, prompt and completion."""
        return self._runner.capacity

    def add(self, request: plain.Request) -> int:
        """Takes a request; returns the id under which its events come.

        Raises:
          UserError: it cannot be met; see `zaya_jax.infer.request.Answer`, and what a constraint or
            `top_logprobs` may be.
        """
        live = self._make(request)
        self._inbox.append(live)
        return live.sequence.id

    def cancel(self, id: int) -> None:
        """Ends a request at the next step; of no effect if it has ended."""
        self._cancelled.append(id)

    @functools.cached_property
    def grammars(self) -> Grammars:
        """Compiles constraints, for requests that are to come; from any thread.

        Raises:
          UserError: no tokenizer, or llguidance is not installed.
        """
        tokenizer = self.loaded.require_tokenizer()
        return Grammars(tokenizer, self.loaded.model.vocab_size, self.loaded.stop_ids)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._inbox or self._cancelled or self._live)

    @property
    def load(self) -> Load:
        """How busy it is."""
        scheduler, allocator = self._scheduler, self._scheduler.allocator
        return Load(
            waiting=len(scheduler.waiting) + len(self._inbox),
            running=len(scheduler.running),
            parked=len(scheduler.parked),
            pages=allocator.count - 1,
            pages_free=allocator.available - allocator.idle,
            pages_idle=allocator.idle,
            preemptions=scheduler.preemptions,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
            version=self.version,
        )

    def step(self) -> list[Event]:
        """Does one step of everything: reads some prompts, adds tokens to all rows that decode.

        Returns:
          News of the requests that have any, in order of arrival.
        """
        events = self._take_in()
        plan = self._scheduler.plan()
        self._runner.move(plan)
        read = [self._runner.read(chunk, self._of(chunk)) for chunk in plan.chunks]
        rows = [self._of(row) for row in plan.rows]
        decoded = self._runner.decode(plan.rows, rows) if rows else None
        # Only now is anything waited for: the device has all of the step's work.
        for chunk, outputs in zip(plan.chunks, read, strict=True):
            self._deliver_chunk(chunk, *outputs)
        if decoded is not None:
            self._deliver_rows(plan.rows, decoded)
        return events + self._news()

    def generate(
        self,
        requests: Iterable[plain.Request],
        on_event: Callable[[int, Event], None] | None = None,
    ) -> list[Result]:
        """Completes all these requests, and whatever else is under way until then.

        Args:
          on_event: called with a request's index and each of its events. Events of requests that
            were added before are lost, if there are any.

        Raises:
          UserError: one that cannot be met; then none is begun.
        """
        made = [self._make(request) for request in requests]
        self._inbox.extend(made)
        ids = {live.sequence.id: index for index, live in enumerate(made)}
        results: dict[int, Result] = {}
        while len(results) < len(ids):
            for event in self.step():
                if event.id in ids:
                    if on_event is not None:
                        on_event(ids[event.id], event)
                    if event.result is not None:
                        results[event.id] = event.result
        return [results[id] for id in ids]

    def swap(
        self, params: Mapping[str, jax.Array], biases: Mapping[str, jax.Array] | None = None
    ) -> None:
        """Puts other weights in place of these, between two steps.

        Requests under way go on with the keys and values that they have. Prefixes that were written
        with the old weights are not shared any more. The arrays are copied: a training step may
        reuse the memory of its own. Where the old weights are quantized the new ones become so.

        Raises:
          UserError: names or shapes that are not those of the model; then nothing is changed.
        """
        self._runner.swap(params, self.loaded.biases if biases is None else biases)
        self.version += 1
        self._scheduler.forget()

    def warm_up(self) -> None:
        """Compiles every program that a step may need, by running it on nothing.

        Raises:
          RuntimeError: requests are under way.
        """
        if not self.idle:
            raise RuntimeError("warm_up comes before the first request")
        self._runner.warm_up()

    def check(self) -> None:
        """Raises AssertionError if a page is lost, or held by one that should not: for tests."""
        sequences = (live.sequence.pages for live in self._live.values())
        self._scheduler.allocator.check([pages for pages in sequences if pages])

    def _make(self, request: plain.Request) -> Live:
        top = self.options.top_logprobs
        wanted = Request.of(request)
        return Live(next(self._ids), self.loaded, wanted, self.capacity, top, self._matcher)

    def _matcher(self, constraint: Constraint | Compiled) -> Matcher:
        return self.grammars.matcher(constraint)

    def _take_in(self) -> list[Event]:
        """Hears of new and of cancelled requests; the last events of the latter."""
        # First who is cancelled: whoever is was added before, and so is found below.
        cancelled = [self._cancelled.popleft() for _ in range(len(self._cancelled))]
        while self._inbox:
            live = self._inbox.popleft()
            self._live[live.sequence.id] = live
            self._scheduler.add(live.sequence)
        events = []
        for id in cancelled:
            found = self._live.get(id)
            if found is not None:
                found.cancel()
                events.append(self._end(found))
        return events

    def _of(self, part: Chunk | Row) -> Live:
        return self._live[part.sequence.id]

    def _deliver_chunk(
        self, chunk: Chunk, chosen: programs.Chosen, scores: programs.Chosen
    ) -> None:
        sequence, live = chunk.sequence, self._of(chunk)
        wanted = live.request.top_logprobs
        if live.request.score_prompt:
            found = jax.device_get(scores)
            for i in range(min(chunk.length, sequence.prompt - 1 - chunk.start)):
                best = _best(found.best[i], found.best_logprobs[i], wanted)
                live.score(float(found.logprobs[i]), best)
        if chunk.last:
            self._prompt_tokens += sequence.prompt
            self._cached_tokens += sequence.shared
            self._push(live, jax.device_get(chosen), fed=0)

    def _deliver_rows(self, rows: Sequence[Row], chosen: programs.Chosen) -> None:
        chosen = jax.device_get(chosen)
        for column, row in enumerate(rows):
            one = jax.tree.map(lambda x, column=column: x[:, column], chosen)
            self._push(self._of(row), one, fed=1)

    def _push(self, live: Live, chosen: programs.Chosen, *, fed: int) -> None:
        """Hands the tokens of a call to a request; each of them cost `fed` tokens of its pages."""
        taken = []
        for i, (id, logprob) in enumerate(
            zip(chosen.tokens.tolist(), chosen.logprobs.tolist(), strict=True)
        ):
            if id < 0 or live.ended:
                break
            best = _best(chosen.best[i], chosen.best_logprobs[i], live.request.top_logprobs)
            live.push(Token(id, logprob, self.version, best))
            taken.append(id)
        self._completion_tokens += len(taken)
        self._scheduler.advance(live.sequence, taken, fed=fed * len(taken))

    def _news(self) -> list[Event]:
        events = []
        for live in list(self._live.values()):
            if live.ended:
                events.append(self._end(live))
            elif live.has_news:
                events.append(live.event())
        return events

    def _end(self, live: Live) -> Event:
        """Its last event; its pages are let go."""
        routes = self._runner.routes(live.sequence) if live.request.routes else None
        event = live.event(routes)
        if (written := self._doubtful(live)) is not None:
            self._runner.clear(self._scheduler.allocator.spoil(written))
        self._scheduler.remove(live.sequence)
        del self._live[live.sequence.id]
        return event

    def _doubtful(self, live: Live) -> list[int] | None:
        """The pages that may hold what is not finite: nobody may get them as they are. Of a request
        that ends before any logit could tell, all that it wrote. None if it is known to be sound.
        """
        sequence = live.sequence
        if live.damaged:
            return sequence.pages
        if live.answer.tokens or sequence.written <= sequence.shared:
            return None
        return sequence.pages[sequence.shared // self.options.page :]


def _best(ids: np.ndarray, logprobs: np.ndarray, wanted: int) -> Best:
    if not wanted:
        return ()
    return tuple(zip(ids[:wanted].tolist(), logprobs[:wanted].tolist(), strict=True))
