"""Many clients at once, good and bad, and then SIGTERM: every answer is whole, and its own."""

from __future__ import annotations

import asyncio
import collections
import itertools
import json
import random
import signal
import time
from typing import NamedTuple

import pytest

aiohttp = pytest.importorskip("aiohttp")
psutil = pytest.importorskip("psutil")

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPTS = [f"def f{i}(x):\n    return {'x' * (1 + 7 * i % 40)}" for i in range(10)]
KINDS = (
    ["whole"] * 4 + ["stream"] * 4 + ["chat"] * 2 + ["choices", "long", "leave", "leave", "rsa"]
    + ["malformed", "huge", "oversized", "unknown"]
)  # fmt: skip
HUGE = ["word " * 20_000, "q7 " * 1500]
"""Too long by their characters, and by their tokens only."""


def asks(capacity):
    """(kind, path, body) of the requests whose answers are known: each is deterministic.

    Args: capacity: tokens that a sequence may have.
    """
    for i, prompt in enumerate(PROMPTS):
        yield "whole", TEXT, {"prompt": prompt, "max_tokens": 3 + i, "temperature": 0}
        yield "stream", TEXT, {"prompt": prompt, "max_tokens": 6 + 2 * i, "seed": i}
        message = {"role": "user", "content": prompt}
        yield "chat", CHAT, {"messages": [message], "max_tokens": 4 + i, "seed": i}
        yield "choices", TEXT, {"prompt": [prompt, "x"], "n": 2, "max_tokens": 4, "seed": i}
    for i in range(2):  # as long as there is room for
        ids = [5 + (i + j * (i + 7)) % 250 for j in range(capacity - 3)]
        yield "long", TEXT, {"prompt": ids, "max_tokens": 3, "seed": i}
    rsa = {"population": 3, "candidates": 1, "rounds": 1, "tail": 4, "budget": 6}
    yield "rsa", CHAT, {"messages": [{"role": "user", "content": "2+2?"}], "seed": 1, "rsa": rsa}


def text_of(answer):
    """What an answer says, choice by choice."""
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    return tuple(
        choice["text"] if "text" in choice else choice["message"]["content"] for choice in choices
    )


class Known(NamedTuple):
    """A request and what is said to it, choice by choice."""

    kind: str
    path: str
    body: dict
    said: tuple


class Soak:
    """Clients, and what they saw.

    counts: by outcome. wrong: what must not have happened. ids: of requests that were sent.
    stopping: whether the server has been told to stop. Until then none may be turned away for
      another reason than want of room, nor end before its time.
    broken: of those whose connection broke while the server was about to end. Whoever was let in
      must not be among them; the log says who was.
    """

    def __init__(self, url, session, expected, name):
        self.url, self.session, self.expected, self.name = url, session, expected, name
        self.counts = collections.Counter()
        self.wrong, self.ids, self.broken = [], {}, []
        self._latest = {}
        self.stopping = False
        self._numbers = itertools.count()

    async def client(self, seed):
        """Asks until the server is told to stop: then some requests are under way."""
        rng = random.Random(seed)
        asyncio.current_task().set_name(str(seed))
        while not self.stopping:
            kind = rng.choice(KINDS)
            try:
                await getattr(self, kind, self.known)(kind, rng)
            except (aiohttp.ClientError, ConnectionError) as error:
                if self.stopping:
                    self.broken.append((self._latest[str(seed)], repr(error)))
                else:
                    self.wrong.append(f"{kind}: {error!r}")

    def post(self, path, body, **options):
        id = f"{self.name}-{next(self._numbers)}"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "X-Request-Id": id}
        self.ids[id] = path
        self._latest[asyncio.current_task().get_name()] = id
        return self.session.post(self.url + path, data=data, headers=headers, **options)

    async def known(self, kind, rng):
        """Asks something whose answer is known, in one piece or in many."""
        ask = rng.choice([ask for ask in self.expected if ask.kind == kind])
        streams = kind == "stream" or rng.random() < 0.5 and kind != "rsa"
        async with self.post(ask.path, ask.body | {"stream": streams}) as answer:
            if self.may_be_turned_away(answer):
                assert int(answer.headers["Retry-After"]) >= 1
                self.counts[f"{kind} {answer.status}"] += 1
                await asyncio.sleep(rng.uniform(0.05, 0.3))
                return
            if answer.status != 200:
                self.wrong.append(f"{kind}: {answer.status} {await answer.text()}")
                return
            said = await (self.streamed(answer) if streams else self.at_once(answer))
        if isinstance(said, dict):  # an error in the stream
            if self.stopping and said["code"] == "stopping":
                self.counts[f"{kind} ended"] += 1
            else:
                self.wrong.append(f"{kind}: {said}")
        elif said != ask.said:
            self.wrong.append(f"{kind}: {said!r} is not {ask.said!r}")
        else:
            self.counts[f"{kind} right"] += 1

    def may_be_turned_away(self, answer):
        """Whether it is, and rightly so: there is no room, or the server stops."""
        return answer.status == 429 or (answer.status == 503 and self.stopping)

    async def at_once(self, answer):
        return text_of(await answer.json())

    async def streamed(self, answer):
        texts, ids, ended = collections.defaultdict(str), set(), collections.Counter()
        async for line in answer.content:
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]\n":
                assert len(ids) == 1 and set(ended.values()) == {1}
                return tuple(texts[i] for i in sorted(texts))
            event = json.loads(line[6:])
            if "error" in event:
                return event["error"]
            ids.add(event["id"])
            for choice in event["choices"]:
                ended[choice["index"]] += choice["finish_reason"] is not None
                texts[choice["index"]] += choice.get("text", "") or ""
                texts[choice["index"]] += choice.get("delta", {}).get("content", "") or ""
        raise aiohttp.ClientPayloadError("the stream has no end")

    async def leave(self, kind, rng):
        body = {"prompt": rng.choice(PROMPTS), "max_tokens": 400, "stream": rng.random() < 0.7}
        try:
            async with asyncio.timeout(rng.uniform(0.01, 0.6)):
                async with self.post(TEXT, body) as answer:
                    if answer.status != 200 and not self.may_be_turned_away(answer):
                        self.wrong.append(f"{kind}: {answer.status} {await answer.text()}")
                    await answer.content.readany()
                    answer.close()
        except TimeoutError:
            pass
        self.counts["left"] += 1

    async def malformed(self, kind, rng):
        body = rng.choice([b"{", b"[]", b'{"prompt": 5}', b"\xff", b'{"prompt": "x", "y": 1}'])
        await self.refused(body, 400)

    async def unknown(self, kind, rng):
        await self.refused({"prompt": "x", "model": "other"}, 404)

    async def huge(self, kind, rng):
        prompt = rng.choice(HUGE)
        statuses = [400] if prompt is HUGE[0] else [400, 429]  # it is encoded only if there is room
        await self.refused({"prompt": prompt, "max_tokens": 2}, *statuses)

    async def oversized(self, kind, rng):
        await self.refused(b'{"prompt": "' + b"x" * (2 * 2**20) + b'"}', 413)

    async def refused(self, body, *statuses):
        async with self.post(TEXT, body) as answer:
            said = await answer.json()
            right = answer.status in statuses or (answer.status == 503 and self.stopping)
            if not right or "error" not in said:
                self.wrong.append(f"{statuses} expected, {answer.status}: {said}")
            self.counts[f"refused {answer.status}"] += 1


async def soak(server, seconds, clients, memory):
    limits = aiohttp.ClientTimeout(total=300)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=limits, connector=connector) as session:
        expected = []
        alone = Soak(server.url, session, [], "alone")
        async with session.get(server.url + "/v1/models") as answer:
            (model,) = (await answer.json())["data"]
        for kind, path, body in asks(model["max_model_len"]):
            async with alone.post(path, body) as answer:
                assert answer.status == 200, await answer.text()
                expected.append(Known(kind, path, body, text_of(await answer.json())))
        run = Soak(server.url, session, expected, "soak")
        begun = time.monotonic()
        tasks = [asyncio.create_task(run.client(seed)) for seed in range(clients)]
        while time.monotonic() < begun + seconds:
            await asyncio.sleep(min(1.0, seconds / 20))
            memory.append((time.monotonic() - begun, server.process_info.memory_info().rss))
        run.stopping = True
        inside = run.counts.total()
        server.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*tasks)
        assert run.counts.total() > inside  # some were under way, and ended well
        return run


def check(serve, folder, options, seconds, clients):
    memory = []
    limits = ("--queue=24", "--body_mb=1", "--drain_seconds=120")
    with serve(folder, *options, *limits) as server:
        server.process_info = psutil.Process(server.process.pid)
        run = asyncio.run(soak(server, seconds, clients, memory))
        assert server.process.wait(150) == 0
        time.sleep(0.2)
    assert not run.wrong, run.wrong[:5]
    stopped = [line for line in server.log if line.get("event") == "stopped"]
    assert stopped and stopped[0]["inside"] == 0
    assert not [line for line in server.log if line["level"] == "error"]
    logged = collections.Counter(
        line["id"] for line in server.log if str(line.get("id")).startswith("soak-")
    )
    assert set(logged.values()) == {1}  # nobody is answered twice
    answered = {line["id"]: line["status"] for line in server.log if "id" in line}
    right = sum(count for name, count in run.counts.items() if name.endswith("right"))
    admitted = sum(answered.get(id) == 200 for id in run.ids)
    assert right > admitted / 2 and right > max(clients / 2, seconds)  # one a second, at least
    assert run.counts["long right"]
    lost = [(id, error) for id, error in run.broken if answered.get(id) == 200]
    assert not lost, lost[:5]
    print(
        json.dumps(
            {
                "requests": len(run.ids),
                "admitted": admitted,
                "right": right,
                "refused at the door": len(run.broken),
                "seconds": seconds,
                "counts": run.counts,
                "megabytes": [m >> 20 for _, m in memory][::20],
            }
        )
    )
    return memory


def test_a_short_soak(serve, folder, options):
    check(serve, folder, options, seconds=8, clients=16)


@pytest.mark.slow
def test_ten_minutes_at_64_at_once(serve, folder, options):
    memory = check(serve, folder, options, seconds=600, clients=64)
    settled = [rss for t, rss in memory if 120 <= t < 240]
    last = [rss for t, rss in memory if t >= 480]
    assert max(last) < max(settled) * 1.05 + 16 * 2**20
