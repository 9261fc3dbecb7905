"""Serving: throughput, time to first token and inter-token latency against concurrency.

Closed loop: so many clients ask at once, and each asks again as soon as its answer is complete. The
engine stands beside two others with the same weights on the same machine: batches of `Generator`
that begin and end together (the static batch: no pages, no scheduler, nobody comes or goes), and
transformers answering one request after the other.
"""

from __future__ import annotations

import dataclasses
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from zaya_jax.bench.speed import Bench
from zaya_jax.config import Model
from zaya_jax.infer import Generator
from zaya_jax.infer import Request as PlainRequest
from zaya_jax.infer.engine import Engine, Options, Request
from zaya_jax.load import Loaded, Source
from zaya_jax.train.throughput import compilations

PROMPT, COMPLETION, PREFIX, SINGLE = 64, 96, 1024, 32
CHUNKS = (64, 256, 512)


@dataclasses.dataclass(frozen=True)
class Line:
    """One concurrency.

    decode: tokens/s while all clients were past their first token. static: of `Generator` with as
      many rows, its prefills left out. share: median over pairs of the one by the other.
    single: tokens/s of transformers decoding one request. gain: median over pairs of decode by it.
    total: tokens/s from the first request to the last answer, prompts read in between.
    first: median seconds to the first token, of requests that found all other clients decoding.
    gap, gap_95: median and 95th percentile of the seconds between two tokens of a request.
    """

    concurrency: int
    decode: float
    static: float
    share: float
    single: float
    gain: float
    total: float
    first: float
    gap: float
    gap_95: float


@dataclasses.dataclass(frozen=True)
class Prefix:
    """Seconds to the first token of prompts that share `tokens` tokens, before and after they are
    known; medians. gain: median over pairs."""

    tokens: int
    cold: float
    cached: float
    gain: float


@dataclasses.dataclass
class Trace:
    """What a client saw: when it asked, when tokens came, and how many each time."""

    asked: float
    came: list[tuple[float, int]] = dataclasses.field(default_factory=list)


def serve(engine: Engine, requests: list[Request], clients: int) -> list[Trace]:
    """Runs a closed loop to its end."""
    todo, clock = list(reversed(requests)), time.perf_counter
    traces: dict[int, Trace] = {}
    while todo or not engine.idle:
        while todo and clients > 0:
            traces[engine.add(todo.pop())] = Trace(clock())
            clients -= 1
        for event in engine.step():
            if event.tokens:
                traces[event.id].came.append((clock(), len(event.tokens)))
            clients += event.result is not None
    return list(traces.values())


def decode_rate(traces: list[Trace], clients: int) -> float:
    """Tokens/s of the first `clients` requests between the moment when all had their first token
    and that when the first of them ended."""
    first = traces[:clients]
    begin = max(trace.came[0][0] for trace in first)
    end = min(trace.came[-1][0] for trace in first)
    tokens = sum(n for trace in first for at, n in trace.came if begin < at <= end)
    return tokens / (end - begin) if end > begin else 0.0


class Serving:
    """The engine and its bounds, with the weights of `Bench`.

    Attributes:
      compiled: programs that were compiled while the engine served, after its warm-up.
    """

    def __init__(self, model: Model, seed: int, concurrencies: list[int], pairs: int):
        self.bench = Bench(model, seed, pairs)
        self.pairs, self.draw = pairs, random.Random(seed)
        # No token ends a text: every request has its full length.
        model = dataclasses.replace(self.bench.model, eos_id=model.vocab_size)
        source = Source("folder", Path("bench"))
        self.loaded = Loaded(model, self.bench.params, self.bench.biases, None, source)
        capacity = PREFIX + 2 * max(CHUNKS)
        self.options = Options(
            rows=max(concurrencies),
            row_sizes=tuple(sorted(set(concurrencies))),
            chunks=CHUNKS,
            capacity=min(capacity, model.context_length),
        )
        self.engine = Engine(self.loaded, self.options)
        self.engine.warm_up()
        self.compiled = 0
        self.bench.best_peer(self.one_by_one, 1)

    def prompt(self, length: int) -> list[int]:
        """Random ids."""
        return [self.draw.randrange(3, self.loaded.model.vocab_size) for _ in range(length)]

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Adds up what is compiled inside the block: around the engine's work alone, for the static
        batches compile their own."""
        with compilations() as found:
            yield
        self.compiled += found.count

    def line(self, clients: int) -> Line:
        """Measures one concurrency: static batch, engine and transformers in turns."""
        generator = Generator(self.loaded, batch=clients, capacity=PROMPT + COMPLETION)
        decode, static, single, total, first, gaps = [], [], [], [], [], []
        for pair in range(self.pairs + 1):  # in the first `Generator` compiles: left out
            prompts = [self.prompt(PROMPT) for _ in range(2 * clients)]
            generator.timing = type(generator.timing)()
            generator.generate([PlainRequest(p, COMPLETION) for p in prompts[:clients]])
            begun = time.perf_counter()
            with self.counted():
                traces = serve(self.engine, [Request(p, COMPLETION) for p in prompts], clients)
            seconds = time.perf_counter() - begun
            if pair == 0:
                continue
            static.append(generator.timing.tokens_per_second)
            decode.append(decode_rate(traces, clients))
            single.append(self.one_by_one())
            total.append(2 * clients * COMPLETION / seconds)
            first += [trace.came[0][0] - trace.asked for trace in traces[clients:]]
            for trace in traces:
                times = [at for at, _ in trace.came]
                counts = [n for _, n in trace.came]
                for before, at, n in zip(times, times[1:], counts[1:], strict=False):
                    gaps += [(at - before) / n] * n

        def ratio(others: list[float]) -> float:
            return statistics.median(d / other for d, other in zip(decode, others, strict=True))

        return Line(
            clients,
            statistics.median(decode),
            statistics.median(static),
            ratio(static),
            statistics.median(single),
            ratio(single),
            statistics.median(total),
            statistics.median(first),
            statistics.median(gaps),
            float(np.percentile(gaps, 95)),
        )

    def prefix(self) -> Prefix:
        """Time to first token with and without a prefix that is known."""
        cold: list[float] = []
        cached: list[float] = []
        for _ in range(self.pairs):
            stem = self.prompt(PREFIX)
            for seconds in (cold, cached):
                begun = time.perf_counter()
                self.engine.generate([Request(stem + self.prompt(16), 1)])
                seconds.append(time.perf_counter() - begun)
        gains = [before / after for before, after in zip(cold, cached, strict=True)]
        median = statistics.median
        return Prefix(PREFIX, median(cold), median(cached), median(gains))

    def one_by_one(self) -> float:
        """Tokens/s of transformers decoding a single request, its prompt left out."""
        with torch.no_grad():
            out = self.bench.oracle(torch.tensor([self.prompt(PROMPT)]), use_cache=True)
            begun = time.perf_counter()
            for _ in range(SINGLE):
                token = out.logits[:, -1:].argmax(-1)
                past = out.past_key_values
                out = self.bench.oracle(token, past_key_values=past, use_cache=True)
        return SINGLE / (time.perf_counter() - begun)


def measure(model: Model, seed: int, concurrencies: list[int], pairs: int):
    """Lines, prefix, and how many programs were compiled after the warm-up."""
    serving = Serving(model, seed, concurrencies, pairs)
    lines = []
    for clients in concurrencies:
        lines.append(serving.line(clients))
    with serving.counted():
        serve(serving.engine, [Request(serving.prompt(70), 8) for _ in range(40)], 32)
        prefix = serving.prefix()
    return lines, prefix, serving.compiled


def show(lines: list[Line], prefix: Prefix, compiled: int) -> str:
    """The table, in Markdown."""
    rows = [
        "| clients | decode tok/s | static batch | share | transformers, one by one | gain "
        "| total tok/s | first token | between tokens | 95% |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        rows.append(
            f"| {line.concurrency} | {line.decode:,.0f} | {line.static:,.0f} | {line.share:.0%} "
            f"| {line.single:,.0f} | {line.gain:.1f}x "
            f"| {line.total:,.0f} | {1e3 * line.first:,.0f} ms "
            f"| {1e3 * line.gap:.0f} ms | {1e3 * line.gap_95:.0f} ms |"
        )
    rows += [
        "",
        f"a prefix of {prefix.tokens} tokens: first token after {1e3 * prefix.cold:,.0f} ms, once "
        f"it is known after {1e3 * prefix.cached:,.0f} ms ({prefix.gain:.1f}x)",
        f"programs compiled after the warm-up: {compiled}",
    ]
    return "\n".join(rows)


def plot(lines: list[Line], file: Path) -> None:
    """Throughput and latencies against concurrency."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    clients = [line.concurrency for line in lines]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(clients, [line.static for line in lines], "o--", label="static batch")
    left.plot(clients, [line.decode for line in lines], "o-", label="engine, decoding")
    left.plot(clients, [line.total for line in lines], "o-", label="engine, prompts included")
    single = [line.single for line in lines]
    left.plot(clients, single, ":", color="gray", label="transformers, one by one")
    left.set(xlabel="clients", ylabel="tokens/s", ylim=(0, None))
    right.plot(clients, [1e3 * line.first for line in lines], "o-", label="to the first token")
    right.plot(clients, [1e3 * line.gap for line in lines], "o-", label="between tokens")
    right.plot(clients, [1e3 * line.gap_95 for line in lines], "o--", label="between tokens, 95%")
    right.set(xlabel="clients", ylabel="ms", yscale="log")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(clients, [str(n) for n in clients])
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(file)
    pyplot.close(figure)
