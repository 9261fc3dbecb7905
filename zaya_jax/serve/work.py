"""The engine's one owner: a thread that steps it, and the requests that wait for its events.

Requests are added from threads of a small pool.
All bookkeeping happens on the event loop: the stepping thread posts what a step gave, and whoever
asked is told there. So there are no locks here, and no event can be lost between two threads.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from zaya_jax.errors import UserError
from zaya_jax.infer.engine import Engine, Event, Request
from zaya_jax.serve.errors import ApiError, of_user_error

Sink = Callable[[Event | ApiError], None]
"""Is given the events of one request, or, once, why there will be no more of them."""
Stepped = Callable[[float], None]

ENCODERS = 2
PATIENCE = 10.0
"""Seconds for the stepping thread to end."""
STUCK = 900.0
"""Seconds of one step after which the engine counts as hung. Where nothing was compiled before, a
step compiles."""
log = logging.getLogger(__name__)


def _nowhere(event: Event | ApiError) -> None:
    """The sink of a request that nobody waits for any more."""
    del event


class Worker:
    """Steps an engine for as long as there is work.

    Attributes:
      engine: nobody else steps it.
      ready: whether it takes requests.
      failure: what ended it, if it has failed.
    """

    def __init__(self, engine: Engine, stepped: Stepped = lambda seconds: None):
        """Args: stepped: told the seconds of every step, in the stepping thread."""
        self.engine, self.ready = engine, False
        self.failure: BaseException | None = None
        self._ended: ApiError | None = None
        self._stepped = stepped
        self._step_began: float | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sinks: dict[int, Sink] = {}
        self._early: dict[int, list[Event]] = {}
        self._wake, self._stopping = threading.Event(), False
        self._pool = ThreadPoolExecutor(ENCODERS, "encode")
        self._thread: threading.Thread | None = None
        self._on_failure: Callable[[], None] = lambda: None

    def start(self, *, warm_up: bool, on_failure: Callable[[], None] = lambda: None) -> None:
        """Begins, from within the event loop. on_failure: called there if the engine breaks."""
        self._loop = asyncio.get_running_loop()
        self._on_failure = on_failure
        self._thread = threading.Thread(
            target=self._run, args=(warm_up,), name="engine", daemon=True
        )
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def step_age(self) -> float:
        """Seconds since the step under way began; 0 between two steps."""
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    async def stop(self) -> None:
        """Ends the thread after the step that it is in; requests under way are not finished.

        A program that is being compiled is not waited for: see `alive`.
        """
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, PATIENCE)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def submit(self, request: Request, sink: Sink) -> int:
        """Hands a request to the engine; its events go to the sink, on the event loop.

        Raises:
          ApiError: the engine refuses it, or takes none.
        """
        self.check()
        assert self._loop is not None
        future = self._pool.submit(self.engine.add, request)
        try:
            id = await asyncio.shield(asyncio.wrap_future(future))
        except asyncio.CancelledError:
            future.add_done_callback(self._abandon)
            raise
        except UserError as error:
            raise of_user_error(error) from error
        except Exception as error:
            log.exception("a request was not taken")
            raise ApiError(500, "the server has failed; its log says how") from error
        self._register(id, sink)
        return id

    def submit_from_thread(self, request: Request, sink: Sink) -> int:
        """`submit` for a thread that is not the event loop's.

        Raises:
          ApiError: the engine takes none.
          UserError: it refuses this one.
        """
        self.check()
        assert self._loop is not None
        id = self.engine.add(request)
        self._loop.call_soon_threadsafe(self._register, id, sink)
        return id

    def cancel(self, ids: Iterable[int]) -> None:
        """Ends requests; nobody hears of them again. Those that have ended stay as they are."""
        for id in ids:
            if id in self._sinks:
                self._sinks[id] = _nowhere
                self.engine.cancel(id)
        self._wake.set()

    def cancel_from_thread(self, ids: Sequence[int]) -> None:
        """`cancel` for a thread that is not the event loop's."""
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.cancel, list(ids))

    def end(self, error: ApiError) -> None:
        """Ends all requests with an error that their clients see, and takes no more."""
        self._ended = error
        for id, sink in list(self._sinks.items()):
            self.cancel([id])
            sink(error)

    def check(self) -> None:
        """Raises ApiError unless requests are taken."""
        if self.failure is not None:
            raise ApiError(500, "the engine has failed; the server is about to end")
        if self._ended is not None:
            raise self._ended
        if not self.ready:
            raise ApiError(503, "the server is starting", code="starting", retry_after=5)

    def _register(self, id: int, sink: Sink) -> None:
        self._wake.set()
        if self.failure is not None:
            sink(ApiError(500, "the engine has failed"))
            return
        self._sinks[id] = sink
        if self._ended is not None:  # while it was being encoded
            self.cancel([id])
            sink(self._ended)
        for event in self._early.pop(id, ()):
            self._tell(event)

    def _abandon(self, future: Future[int]) -> None:
        """Whoever asked is gone while the request was being encoded."""
        assert self._loop is not None
        if not future.cancelled() and future.exception() is None:
            id = future.result()
            self._loop.call_soon_threadsafe(self._register, id, _nowhere)
            self._loop.call_soon_threadsafe(self.cancel, [id])

    def _tell(self, event: Event) -> None:
        sink = self._sinks.get(event.id)
        if sink is None:
            self._early.setdefault(event.id, []).append(event)
            return
        if event.result is not None:
            del self._sinks[event.id]
        try:
            sink(event)
        except Exception:  # of one request; the others' events are still to be told
            log.exception("an event was not taken")
            self.cancel([event.id])

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            self._tell(event)

    def _fail(self, error: BaseException) -> None:
        log.error("the engine has failed", exc_info=error)
        self.failure, self.ready = error, False
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink(ApiError(500, "the engine has failed while it worked on this"))
        self._on_failure()

    def _set_ready(self) -> None:
        self.ready = True

    def _run(self, warm_up: bool) -> None:
        """The stepping thread."""
        assert self._loop is not None
        post = self._loop.call_soon_threadsafe
        try:
            if warm_up:
                self.engine.warm_up()
            post(self._set_ready)
            while not self._stopping:
                self._wake.wait()
                self._wake.clear()
                while not (self._stopping or self.engine.idle):
                    self._step_began = begun = time.monotonic()
                    events = self.engine.step()
                    self._step_began = None
                    self._stepped(time.monotonic() - begun)
                    if events:
                        post(self._deliver, events)
        except BaseException as error:  # whatever it is: the clients must hear of it
            if not self._loop.is_closed():
                post(self._fail, error)


class Job:
    """Requests that belong together: their events come in one stream, each with its number."""

    def __init__(self, worker: Worker):
        self._worker = worker
        self._ids: list[int] = []
        self._open = 0
        self._news: dict[int, list[Event]] = {}
        self._error: ApiError | None = None
        self._arrived = asyncio.Event()

    async def begin(self, requests: Sequence[Request]) -> None:
        """Submits all of them.

        Raises:
          ApiError: one that the engine refuses; then none goes on.
        """
        self._open = len(requests)
        try:
            for number, request in enumerate(requests):
                sink = lambda event, number=number: self._take(number, event)  # noqa: E731
                self._ids.append(await self._worker.submit(request, sink))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends what has not ended."""
        self._worker.cancel(self._ids)

    def _take(self, number: int, event: Event | ApiError) -> None:
        if isinstance(event, ApiError):
            self._error = event
        else:
            self._news.setdefault(number, []).append(event)
        self._arrived.set()

    async def events(self) -> AsyncIterator[tuple[int, Event]]:
        """(number, event) until every request has ended; what waits for one is joined.

        Raises:
          ApiError: the engine failed, or a request of it did.
        """
        while self._open:
            await self._arrived.wait()
            self._arrived.clear()
            news, self._news = self._news, {}
            for number, events in news.items():
                event = joined(events)
                if event.result is not None:
                    self._open -= 1
                    if event.result.finish == "failed":
                        raise ApiError(500, f"the request failed: {event.result.error}")
                yield number, event
            if self._error is not None:
                raise self._error


def joined(events: Sequence[Event]) -> Event:
    """One event that says what these say."""
    if len(events) == 1:
        return events[0]
    tokens = tuple(token for event in events for token in event.tokens)
    text = "".join(event.text for event in events)
    return Event(events[0].id, tokens, text, events[-1].result)
