"""The thread that steps the engine, and faults that are one request's own."""

from __future__ import annotations

import asyncio
from collections import deque

import pytest

from zaya_jax.infer.engine import Event, Request, Result
from zaya_jax.serve.errors import ApiError
from zaya_jax.serve.work import Worker


class Counting:
    """An engine that ends each request after a step; what is added may be refused."""

    def __init__(self):
        self.added, self.cancelled, self.fault = deque(), [], None
        self.count = 0

    @property
    def idle(self):
        return not self.added

    def add(self, request):
        if self.fault is not None:
            raise self.fault
        self.count += 1
        self.added.append(self.count)
        return self.count

    def cancel(self, id):
        self.cancelled.append(id)

    def step(self):
        ended = Result("", [], [], [], "length", 0)
        events = [Event(id, (), "", ended) for id in self.added]
        self.added.clear()
        return events


def working(check):
    async def run():
        engine = Counting()
        worker = Worker(engine)
        worker.start(warm_up=False)
        while not worker.ready:
            await asyncio.sleep(0.001)
        try:
            async with asyncio.timeout(20):
                await check(worker, engine)
        finally:
            await worker.stop()

    asyncio.run(run())


def test_who_comes_in_while_all_are_ended_is_ended_too():
    async def check(worker, engine):
        told = []
        worker.end(ApiError(503, "stopping"))
        worker._register(7, told.append)  # it was being encoded meanwhile
        assert [error.status for error in told] == [503] and 7 in engine.cancelled
        with pytest.raises(ApiError, match="stopping"):
            await worker.submit(Request([1]), told.append)

    working(check)


def test_whatever_the_engine_raises_is_an_answer():
    async def check(worker, engine):
        engine.fault = OverflowError("int too large")
        with pytest.raises(ApiError) as error:
            await worker.submit(Request([1]), lambda event: None)
        assert error.value.status == 500
        engine.fault = None
        ended = asyncio.Event()
        await worker.submit(Request([1]), lambda event: ended.set())
        await ended.wait()

    working(check)


def test_one_that_cannot_take_its_events_does_not_lose_those_of_others():
    async def check(worker, engine):
        def broken(event):
            raise RuntimeError("no room")

        ended = asyncio.Event()
        worker._sinks |= {1: broken, 2: lambda event: ended.set()}
        worker._deliver([Event(1, (), "x", None), Event(2, (), "y", None)])
        assert ended.is_set() and engine.cancelled == [1]

    working(check)
