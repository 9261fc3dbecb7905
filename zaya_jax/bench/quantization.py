"""Quantized weights and caches: bytes, bits per byte of unseen text, tokens per second.

Everything goes through the engine that serves: the text is scored as prompts, a chunk after the
other, so that keys and values of all chunks before come out of the cache; tokens are decoded by
requests that begin together. The forms are timed in turns.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from zaya_jax.bench.fits import form_of
from zaya_jax.config import Model
from zaya_jax.errors import UserError
from zaya_jax.infer import quantize
from zaya_jax.infer.engine import Engine, Options, Request
from zaya_jax.infer.engine.pool import page_bytes
from zaya_jax.infer.quantize import Scheme
from zaya_jax.load import Loaded, Source, load
from zaya_jax.model import functional

ROWS, PROMPT, COMPLETION, PAGE = 8, 32, 96, 64
SCORED = 16_384
"""Tokens of unseen text, from the beginnings of documents."""
FORMS: tuple[tuple[Scheme | None, str | None], ...] = (
    (None, None),
    (None, "int8"),
    (Scheme("int8"), None),
    (Scheme("int8", "all"), None),
    (Scheme("fp8"), None),
    (Scheme("int4"), None),
    (Scheme("int4", group=32), None),
    (Scheme("fp4"), None),
    (Scheme("int4", "all"), None),
    (Scheme("int4", "all"), "int8"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One form.

    weights: bytes of all parameters. bits: of an average one. token: bytes of cache a token.
    bits_per_byte: of the unseen text; None without one.
    alone, batch: tokens/s of decoding 1 and `ROWS` requests, medians; gain_alone and gain_batch:
      medians over pairs with the first form.
    """

    form: str
    cache: str
    weights: int
    bits: float
    token: float
    bits_per_byte: float | None
    alone: float
    batch: float
    gain_alone: float
    gain_batch: float


class Subject:
    """One form of a network, in an engine of its own."""

    def __init__(self, loaded: Loaded, scheme: Scheme | None, cache: str | None, capacity: int):
        self.scheme, self.cache = scheme, cache
        if scheme is not None:
            loaded = quantize.quantize(loaded, scheme)
        options = Options(
            rows=ROWS,
            row_sizes=(1, ROWS),
            page=PAGE,
            pages=1 + ROWS * -(-(capacity + PAGE) // PAGE),
            chunks=(PAGE,),
            capacity=capacity,
            cache_dtype=cache,
        )
        self.engine = Engine(loaded, options)
        self.engine.warm_up()

    def rate(self, prompts: Sequence[list[int]]) -> float:
        """Tokens/s of decoding after these prompts, once all have their first token."""
        engine, clock = self.engine, time.perf_counter
        for prompt in prompts:
            engine.add(Request(prompt, COMPLETION, ignore_eos=True))
        waiting, tokens, begun = len(prompts), 0, 0.0
        first: set[int] = set()
        while not engine.idle:
            events = engine.step()
            if waiting:
                first |= {event.id for event in events if event.tokens}
                waiting = len(prompts) - len(first)
                begun = clock()
            else:
                tokens += sum(len(event.tokens) for event in events)
        return tokens / (clock() - begun)

    def nats(self, documents: Sequence[list[int]]) -> float:
        """Summed over all tokens but the first of each."""
        requests = [Request(ids, 1, score_prompt=True) for ids in documents]
        results = self.engine.generate(requests)
        return -sum(sum(result.prompt_logprobs or ()) for result in results)


def unseen(folder: Path, loaded: Loaded) -> Iterator[list[int]]:
    """Ids of a run's held-out documents, each cut to the context, `SCORED` of them in all.

    Raises:
      UserError: it is no run.
    """
    from zaya_jax.train import setup, workdir

    if loaded.source.kind != "run":
        raise UserError(
            f"--model={folder}: bits per byte are measured on what a run has held out; expected a "
            "run directory, or no --model for the speed of --config with random weights"
        )
    prepared = setup.prepare_data(workdir.read_config(loaded.source.path), loaded.source.path)
    left = SCORED
    for document in prepared.heldout.documents:
        ids = prepared.tokenizer.encode(document.text)
        ids = ids[: min(left, loaded.model.context_length - 1)]
        if len(ids) > 1:
            yield ids
        left -= len(ids)
        if left < 2:
            return


def random_weights(model: Model, seed: int) -> Loaded:
    """A network of that shape as training begins with it."""
    model = dataclasses.replace(model, layers="unroll")
    params, biases = functional.init(model, jax.random.key(seed))
    return Loaded(model, params, biases, None, Source("folder", Path("bench")))


def fitting(model: Model) -> tuple[list[tuple[Scheme | None, str | None]], list[str]]:
    """Those of `FORMS` whose groups a model's widths allow, and for each of the others why not."""
    forms, left_out = [], []
    for scheme, cache in FORMS:
        try:
            if scheme is not None:
                scheme.check(model)
            forms.append((scheme, cache))
        except UserError as error:
            left_out.append(f"{form_of(scheme)}: {error}")
    return forms, list(dict.fromkeys(left_out))


def measure(
    path: str | None, model: Model | None, seed: int, pairs: int
) -> tuple[list[Row], list[str]]:
    """The forms of a run's network, or of random weights in the shape of `model`.

    Returns:
      A row for each form that fits, and of the others why they do not.

    Raises:
      UserError: as `load`, and `unseen`.
    """
    documents: list[list[int]] = []
    sizes = np.zeros(0)
    if path is not None:
        loaded = load(path)
        documents = list(unseen(Path(path), loaded))
        sizes = np.asarray(loaded.require_tokenizer().bytes_per_id)
    else:
        assert model is not None
        loaded = random_weights(model, seed)
    longest = max([PROMPT + COMPLETION, *map(len, documents)])
    capacity = min(loaded.model.context_length, longest + 1)
    forms, left_out = fitting(loaded.model)
    subjects = [Subject(loaded, scheme, cache, capacity) for scheme, cache in forms]
    rng = np.random.default_rng(seed)
    rates: dict[int, list[list[float]]] = {1: [], ROWS: []}
    for pair in range(pairs + 1):
        prompts = [rng.integers(3, loaded.model.vocab_size, PROMPT).tolist() for _ in range(ROWS)]
        for count, taken in rates.items():
            order = range(len(subjects)) if pair % 2 else reversed(range(len(subjects)))
            now = {i: subjects[i].rate(prompts[:count]) for i in order}
            if pair:  # the first one warms up
                taken.append([now[i] for i in range(len(subjects))])
    total = sum(int(sizes[ids[1:]].sum()) for ids in documents)

    def row(number: int, subject: Subject) -> Row:
        loaded, cache = subject.engine.loaded, subject.cache
        weights = quantize.nbytes(loaded.params.values())
        alone, batch = ([pair[number] for pair in rates[count]] for count in (1, ROWS))
        gains = [
            statistics.median(pair[number] / pair[0] for pair in rates[count]) for count in rates
        ]
        bits = subject.nats(documents) / math.log(2) / total if documents else None
        return Row(
            form_of(subject.scheme),
            cache or loaded.model.activation_dtype,
            weights,
            8 * weights / functional.parameter_count(loaded.model),
            page_bytes(loaded.model, PAGE, cache) / PAGE,
            bits,
            statistics.median(alone),
            statistics.median(batch),
            *gains,
        )

    return [row(number, subject) for number, subject in enumerate(subjects)], left_out


def show(rows: Sequence[Row], left_out: Sequence[str] = ()) -> str:
    """The table, in Markdown, and a line on each form that is not in it."""
    lines = [
        "| weights | cache | MB | bits a weight | cache bytes a token | bits per byte | change "
        f"| tokens/s, 1 request | gain | tokens/s, {ROWS} requests | gain |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    base = rows[0].bits_per_byte
    for row in rows:
        quality = "- | -"
        if row.bits_per_byte is not None and base is not None:
            quality = f"{row.bits_per_byte:.4f} | {row.bits_per_byte / base - 1:+.2%}"
        lines.append(
            f"| {row.form} | {row.cache} | {row.weights / 1e6:.2f} | {row.bits:.2f} "
            f"| {row.token:,.0f} | {quality} | {row.alone:,.0f} | {row.gain_alone:.2f}x "
            f"| {row.batch:,.0f} | {row.gain_batch:.2f}x |"
        )
    if left_out:
        lines += ["", *(f"left out: {reason}" for reason in left_out)]
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For a file."""
    return [dataclasses.asdict(row) for row in rows]
