"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from zaya_jax.infer.engine import Engine

REQUEST = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)
TOKEN = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)


class Metrics:
    """Counters and histograms of one server; docs/serving.md lists them."""

    def __init__(self, engine: Engine):
        self._registry = CollectorRegistry()
        self._registry.register(_OfEngine(engine))
        make: dict[str, Any] = {"registry": self._registry}
        self._requests = Counter("zaya_requests", "Requests answered.", ("route", "status"), **make)
        self._seconds = Histogram(
            "zaya_request_seconds", "From a request's head to its last byte.", ("route",),
            buckets=REQUEST, **make,
        )  # fmt: skip
        self._rejected = Counter(
            "zaya_rejected", "Requests sent away for want of room.", ("reason",), **make
        )
        self.first = Histogram(
            "zaya_first_token_seconds", "From admission to a sequence's first token.",
            buckets=REQUEST, **make,
        )  # fmt: skip
        self.between = Histogram(
            "zaya_between_tokens_seconds", "Between two tokens of a sequence.",
            buckets=TOKEN, **make,
        )  # fmt: skip
        self.step = Histogram(
            "zaya_engine_step_seconds", "Steps of the engine.", buckets=TOKEN, **make
        )
        self.solved = Counter(
            "zaya_rsa_runs", "Runs of Markovian RSA, by how they ended.", ("end",), **make
        )
        self.gone = Counter("zaya_disconnects", "Clients that left before the end.", **make)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def reject(self, reason: str) -> None:
        """Counts a request that was sent away."""
        self._rejected.labels(reason).inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


class _OfEngine(Collector):
    """What the engine knows itself, read when it is asked for."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        load = self._engine.load
        sequences = GaugeMetricFamily("zaya_sequences", "Sequences by state.", labels=["state"])
        for state in ("waiting", "running", "parked"):
            sequences.add_metric([state], getattr(load, state))
        yield sequences
        pages = GaugeMetricFamily("zaya_pages", "Pages of the cache by state.", labels=["state"])
        held = load.pages - load.pages_free - load.pages_idle
        for state, count in (
            ("free", load.pages_free), ("cached", load.pages_idle), ("held", held),
        ):  # fmt: skip
            pages.add_metric([state], count)
        yield pages
        for name, value, meaning in (
            ("zaya_prompt_tokens", load.prompt_tokens, "Tokens of prompts."),
            ("zaya_cached_tokens", load.cached_tokens, "Of these, found in the prefix cache."),
            ("zaya_completion_tokens", load.completion_tokens, "Tokens decoded."),
            ("zaya_preemptions", load.preemptions, "Sequences parked for want of pages."),
        ):
            yield CounterMetricFamily(name, meaning, value=value)
        yield GaugeMetricFamily(
            "zaya_weights_version", "How often the weights were swapped.", value=load.version
        )
