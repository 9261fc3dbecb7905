"""What is measured of a request."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

from zaya_jax.infer.engine import Event, Result, Token
from zaya_jax.serve.gate import Gate
from zaya_jax.serve.service import Record, Run


class Seen(list):
    """A histogram."""

    observe = list.append


def test_the_first_token_is_waited_for_from_admission_on():
    """Encoding and compiling come before the engine hears of a request; its client waits for
    them, too."""
    metrics = SimpleNamespace(first=Seen(), between=Seen())
    gate = Gate(1, 1, lambda reason: None)
    service = SimpleNamespace(worker=None, gate=gate, metrics=metrics)
    record = Record()

    async def answered():
        run = Run(service, record, 1)
        time.sleep(0.2)  # its prompt is encoded, its grammar compiled
        run._job._open = 1
        token = Token(5, -1.0, 0, ())
        run._job._take(0, Event(0, (token,), "x", Result("x", [5], [-1.0], [0], "length", 3)))
        return [event async for event in run.events()]

    assert len(asyncio.run(answered())) == 1
    assert len(metrics.first) == 1 and metrics.first[0] >= 0.2
    assert record.first_token_seconds == round(metrics.first[0], 6)
